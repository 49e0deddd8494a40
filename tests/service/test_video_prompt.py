"""A prompt with videos, token by token beside transformers' own."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.video_utils import VideoMetadata

from inference.protocol import ModelFacts, Vision
from inference.spans import VisualLayout, locate_spans
from service.conversation import Bytes, MediaPart, Message, TextPart
from service.errors import RequestInvalid
from service.media.decoded_image import DecodedImage
from service.media.sampled_video import SampledVideo
from service.media.sampling import VideoBounds, patch_times, sample_indices
from service.text.prompt import PromptBuilder

BOUNDS = VideoBounds(factor=32, temporal_factor=2, min_pixels=4096, max_pixels=1_000_000)
FILM = MediaPart(source=Bytes(b""), param="video", kinds=("video",))
PICTURE = MediaPart(source=Bytes(b""), param="image")
HASH = bytes(32)


@pytest.fixture(scope="module")
def facts(checkpoint: Path, read_model_facts: Callable[[Path], ModelFacts]) -> ModelFacts:
    return read_model_facts(checkpoint)


@pytest.fixture(scope="module")
def builder(facts: ModelFacts) -> PromptBuilder:
    return PromptBuilder(msgspec.structs.replace(facts, max_model_len=100_000))


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path):
    return AutoTokenizer.from_pretrained(checkpoint)


def clip(source_frames: int, rate: float, height: int, width: int) -> SampledVideo:
    indices = sample_indices(source_frames, rate, BOUNDS)
    num_frames = len(indices) + len(indices) % 2
    return SampledVideo(
        num_frames=num_frames,
        height=height,
        width=width,
        pixels=bytes(num_frames * height * width * 3),
        content_hash=HASH,
        timestamps=tuple(patch_times(indices, rate, 2)),
        source_height=height,
        source_width=width,
        source_frames=source_frames,
        source_seconds=source_frames / rate,
        source_format="mp4",
    )


def picture(height: int, width: int) -> DecodedImage:
    return DecodedImage(height, width, bytes(height * width * 3), HASH, height, width, "png")


def replacement(source_frames: int, rate: float, height: int, width: int) -> str:
    """What transformers puts in a video placeholder's place."""
    indices = sample_indices(source_frames, rate, BOUNDS)
    processor = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
        video_token="<|video_pad|>",
        _calculate_timestamps=lambda *a: Qwen3VLProcessor._calculate_timestamps(None, *a),  # pyright: ignore[reportArgumentType]
    )
    grid = np.array([[-(-len(indices) // 2), height // 16, width // 16]])
    metadata = VideoMetadata(total_num_frames=source_frames, fps=rate, frames_indices=indices)
    inputs = {"video_grid_thw": grid, "video_metadata": [metadata]}
    return Qwen3VLProcessor.replace_video_token(processor, inputs, 0)  # pyright: ignore[reportArgumentType]


@settings(
    max_examples=60,
    deadline=None,
    # Made once on purpose: they do not change.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    before=st.sampled_from(["", "Watch:", "What happens <", " \n"]),
    after=st.sampled_from(["", "What happens?", "> then", "0.5 seconds>"]),
    source_frames=st.integers(1, 400),
    rate=st.sampled_from([1.0, 12.5, 24.0, 30000 / 1001, 60.0]),
    sides=st.tuples(st.sampled_from([32, 64, 96]), st.sampled_from([32, 128])),
)
def test_a_video_becomes_the_tokens_that_transformers_makes(
    builder, tokenizer, before, after, source_frames, rate, sides
):
    message = Message("user", (TextPart(before), FILM, TextPart(after)))
    items = [{"type": "text", "text": before}, {"type": "video"}, {"type": "text", "text": after}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": items}], add_generation_prompt=True, tokenize=False
    )
    expanded = text.replace("<|video_pad|>", replacement(source_frames, rate, *sides))

    prompt = builder.build([message], [clip(source_frames, rate, *sides)])

    assert prompt.token_ids == tokenizer(expanded)["input_ids"]
    assert prompt.num_text_tokens + prompt.num_image_tokens == len(prompt.token_ids)


def test_the_engine_finds_every_picture_and_every_patch_of_a_video(builder, facts):
    message = Message("user", (PICTURE, TextPart("then"), FILM, FILM, PICTURE))
    media = [picture(32, 64), clip(90, 30.0, 64, 64), clip(3, 30.0, 32, 96), picture(96, 32)]

    prompt = builder.build([message], media)

    visions = [
        Vision(
            height=each.height,
            width=each.width,
            pixels=memoryview(each.pixels),
            num_frames=each.num_frames if isinstance(each, SampledVideo) else 1,
            video=isinstance(each, SampledVideo),
            content_hash=HASH,
        )
        for each in media
    ]
    spans = locate_spans(prompt.token_ids, visions, VisualLayout.of(facts))
    assert [span.vision for span in spans] == [0, 1, 1, 1, 2, 2, 3]
    assert sum(span.num_tokens for span in spans) == prompt.num_image_tokens


def test_times_are_written_before_their_frames(builder):
    prompt = builder.build([Message("user", (FILM,))], [clip(60, 30.0, 32, 32)])

    said = builder.tokenizer.decode(prompt.token_ids, skip_special_tokens=False)
    frame = "<|vision_start|><|video_pad|><|vision_end|>"
    film = f"<0.3 seconds>{frame}<1.6 seconds>{frame}"
    assert f"<|vision_start|>{film}<|vision_end|>" in said


def test_a_placeholder_that_a_client_spells_stays_text(builder):
    spelt = "<|vision_start|><|video_pad|><|vision_end|>"
    media = [clip(4, 2.0, 32, 32)]

    with_text = builder.build([Message("user", (TextPart(spelt), FILM))], media)

    alone = builder.build([Message("user", (FILM,))], media)
    assert with_text.num_image_tokens == alone.num_image_tokens


def test_a_video_where_the_template_takes_none_is_the_clients_mistake(checkpoint, facts, tmp_path):
    shutil.copy(checkpoint / "tokenizer.json", tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{% for item in m.content %}"
        "{% if item.type == 'image' %}<|image_pad|>{% endif %}{% endfor %}{% endfor %}"
    )
    still_only = PromptBuilder(msgspec.structs.replace(facts, path=str(tmp_path)))

    with pytest.raises(RequestInvalid) as refusal:
        still_only.build(
            [Message("user", (FILM, PICTURE))], [clip(4, 2.0, 32, 32), picture(32, 32)]
        )
    assert refusal.value.code == "messages_invalid"
