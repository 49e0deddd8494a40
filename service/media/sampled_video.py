"""A video's sampled frames, as they go from a decoder process to the prompt and the engine."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SampledVideo:
    """A video as the model sees it: few frames, upright, RGB, of one size.

    num_frames: a multiple of the temporal patch; the last frame is repeated up to it.
    pixels: uint8 RGB, C order [num_frames, height, width, 3].
    content_hash: 32 bytes, BLAKE2b over shape and pixels.
    timestamps: seconds from the start, one for each temporal patch: the middle of its frames.
    source_height, source_width: of the upright frames before resizing.
    source_frames, source_seconds: of the whole file, as counted, not as its header says.
    source_format: as `container.sniff` names it.
    """

    num_frames: int
    height: int
    width: int
    pixels: bytes
    content_hash: bytes
    timestamps: tuple[float, ...]
    source_height: int
    source_width: int
    source_frames: int
    source_seconds: float
    source_format: str
