"""Where pictures and video frames lie in a prompt. Pure Python: token ids and sizes only."""

from collections.abc import Sequence
from typing import NamedTuple

from inference.protocol import ModelFacts, Vision


class VisualLayout(NamedTuple):
    """The numbers of a checkpoint that place pictures in prompts."""

    image_token_id: int
    video_token_id: int
    patch_size: int
    merge_size: int
    temporal_patch_size: int

    @classmethod
    def of(cls, model: ModelFacts) -> "VisualLayout":
        """Take them from the loaded model's facts."""
        return cls(
            model.image_token_id,
            model.video_token_id,
            model.patch_size,
            model.merge_size,
            model.temporal_patch_size,
        )


class VisualSpan(NamedTuple):
    """One run of visual tokens: a whole picture, or one temporal patch of a video.

    start: index of its first token in the prompt. rows, columns: the merged grid; the run has
    rows * columns tokens. vision: index of its picture in the request. first_row: where its
    features begin in that picture's.
    """

    start: int
    rows: int
    columns: int
    vision: int
    first_row: int

    @property
    def num_tokens(self) -> int:
        """Tokens of the run."""
        return self.rows * self.columns

    @property
    def end(self) -> int:
        """Index behind its last token."""
        return self.start + self.num_tokens


class PromptInvalid(ValueError):
    """Pixels, sizes and placeholders of a request contradict each other."""


def num_patches(vision: Vision, layout: VisualLayout) -> int:
    """Patches the vision encoder sees for it."""
    frames = -(-vision.num_frames // layout.temporal_patch_size)
    return frames * (vision.height // layout.patch_size) * (vision.width // layout.patch_size)


def check_vision(vision: Vision, layout: VisualLayout) -> None:
    """Refuse sizes that do not match the pixels.

    Raises:
        PromptInvalid: not a multiple of the merged patch, an odd video, or a wrong byte count.
    """
    factor = layout.patch_size * layout.merge_size
    if min(vision.height, vision.width, vision.num_frames) < 1:
        raise PromptInvalid("a size is not positive")
    if vision.height % factor or vision.width % factor:
        raise PromptInvalid("a side is not a multiple of the merged patch")
    if vision.video and vision.num_frames % layout.temporal_patch_size:
        raise PromptInvalid("a video's frames do not fill its temporal patches")
    if not vision.video and vision.num_frames != 1:
        raise PromptInvalid("a picture has one frame")
    if vision.pixels.nbytes != vision.num_frames * vision.height * vision.width * 3:
        raise PromptInvalid("the pixels do not match the size")
    if len(vision.content_hash) != 32:
        raise PromptInvalid("the content hash is not 32 bytes")


def locate_spans(
    prompt_token_ids: Sequence[int], visions: Sequence[Vision], layout: VisualLayout
) -> tuple[VisualSpan, ...]:
    """Match the placeholders of a prompt with its pictures, in order.

    Raises:
        PromptInvalid: a size is wrong, or placeholders and pictures do not match.
    """
    expected = _expected_runs(visions, layout)
    spans: list[VisualSpan] = []
    visual_ids = (layout.image_token_id, layout.video_token_id)
    index, length = 0, len(prompt_token_ids)
    while index < length:
        if prompt_token_ids[index] not in visual_ids:
            index += 1
            continue
        if len(spans) == len(expected):
            raise PromptInvalid("more placeholders than pictures")
        token_id, span = expected[len(spans)]
        span = span._replace(start=index)
        if span.end > length or any(t != token_id for t in prompt_token_ids[index : span.end]):
            raise PromptInvalid("a placeholder run does not match its picture")
        spans.append(span)
        index = span.end
    if len(spans) < len(expected):
        raise PromptInvalid("more pictures than placeholders")
    return tuple(spans)


def _expected_runs(visions: Sequence[Vision], layout: VisualLayout) -> list[tuple[int, VisualSpan]]:
    factor = layout.patch_size * layout.merge_size
    runs: list[tuple[int, VisualSpan]] = []
    for number, vision in enumerate(visions):
        check_vision(vision, layout)
        rows, columns = vision.height // factor, vision.width // factor
        token_id = layout.video_token_id if vision.video else layout.image_token_id
        frames = vision.num_frames // layout.temporal_patch_size if vision.video else 1
        runs += [
            (token_id, VisualSpan(0, rows, columns, number, frame * rows * columns))
            for frame in range(frames)
        ]
    return runs
