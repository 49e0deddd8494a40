"""What a checkpoint's files say of videos, wherever they say it."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from inference.protocol import ModelFacts
from service.media.model_bounds import read_model_bounds
from service.media.sampling import VideoBounds


@pytest.fixture
def facts(checkpoint: Path, read_model_facts: Callable[[Path], ModelFacts]) -> ModelFacts:
    return read_model_facts(checkpoint)


OWN = {"size": {"longest_edge": 5000, "shortest_edge": 4096}, "fps": 4, "max_frames": 10, "x": 1}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, VideoBounds(32, 2, 131_072, 786_432), id="nowhere"),
        pytest.param(
            {"video_preprocessor_config.json": OWN},
            VideoBounds(32, 2, 4096, 5000, 4.0, 4, 10),
            id="a file of its own",
        ),
        pytest.param(
            {"processor_config.json": {"video_processor": OWN, "image_processor": {}}},
            VideoBounds(32, 2, 4096, 5000, 4.0, 4, 10),
            id="within the processor's",
        ),
    ],
)
def test_a_checkpoints_word_on_videos_is_found(files, expected, facts, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(msgspec.json.encode(content))
    bounds = read_model_bounds(msgspec.structs.replace(facts, path=str(tmp_path)))

    assert expected == bounds.video
    assert (bounds.images.min_pixels, bounds.images.max_pixels) == (
        facts.min_pixels,
        facts.max_pixels,
    )


def test_a_broken_file_is_not_overlooked(facts, tmp_path):
    (tmp_path / "video_preprocessor_config.json").write_text("{")

    with pytest.raises(ValueError, match="truncated"):
        read_model_bounds(msgspec.structs.replace(facts, path=str(tmp_path)))
