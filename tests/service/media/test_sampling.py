"""Frames, times and sizes of a video, against transformers' own."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import (
    Qwen3VLVideoProcessor,
    smart_resize,
)
from transformers.video_utils import VideoMetadata

from service.media.sampling import VideoBounds, patch_times, sample_indices, smart_resize_frames

BOUNDS = VideoBounds(factor=32, temporal_factor=2, min_pixels=4096, max_pixels=25_165_824)
PROCESSOR = SimpleNamespace(
    fps=Qwen3VLVideoProcessor.fps,
    min_frames=Qwen3VLVideoProcessor.min_frames,
    max_frames=Qwen3VLVideoProcessor.max_frames,
)
rates = st.one_of(
    st.sampled_from([1.0, 10.0, 24.0, 25.0, 30.0, 30000 / 1001, 50.0, 60.0, 240.0]),
    st.floats(0.01, 1000),
)


@given(num_frames=st.integers(1, 40_000), rate=rates)
def test_the_frames_are_those_that_transformers_chooses(num_frames, rate):
    metadata = VideoMetadata(total_num_frames=num_frames, fps=rate)
    expected = Qwen3VLVideoProcessor.sample_frames(PROCESSOR, metadata)  # pyright: ignore[reportArgumentType]

    assert expected.tolist() == sample_indices(num_frames, rate, BOUNDS)


@given(num_frames=st.integers(1, 5_000), rate=rates)
def test_the_times_are_those_that_transformers_writes(num_frames, rate):
    indices = sample_indices(num_frames, rate, BOUNDS)
    expected = Qwen3VLProcessor._calculate_timestamps(None, list(indices), rate, 2)  # pyright: ignore[reportArgumentType]

    assert expected == patch_times(indices, rate, 2)


@given(
    num_frames=st.integers(1, 768),
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    max_pixels=st.sampled_from([200_000, 8 * 2**20, 25_165_824]),
)
def test_the_size_is_the_one_that_transformers_chooses(num_frames, height, width, max_pixels):
    bounds = VideoBounds(factor=32, temporal_factor=2, min_pixels=131_072, max_pixels=max_pixels)
    outcomes: list[tuple[int, int] | str] = []
    for resize in (
        lambda: smart_resize(num_frames, height, width, 2, 32, 131_072, max_pixels),
        lambda: smart_resize_frames(num_frames, height, width, bounds),
    ):
        try:
            outcomes.append(resize())
        except ValueError:
            outcomes.append("refused")

    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("num_frames", "rate", "expected"),
    [
        pytest.param(1, 30.0, [0], id="one frame"),
        pytest.param(3, 30.0, [0, 1, 2], id="fewer than four"),
        pytest.param(30, 30.0, [0, 10, 19, 29], id="a second"),
        pytest.param(300, 30.0, [0, 16, 31, 47, 63, 79, 94, 110, 126, 142], id="ten seconds"),
    ],
)
def test_frames_lie_evenly_from_the_first_to_the_last(num_frames, rate, expected):
    chosen = sample_indices(num_frames, rate, BOUNDS)

    assert expected == chosen[: len(expected)]
    assert chosen[-1] == num_frames - 1
