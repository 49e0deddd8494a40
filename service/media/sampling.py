"""Which of a video's frames the model sees, when they were, and how large. Pure arithmetic."""

import math
from dataclasses import dataclass

from service.media.resize import MAX_ASPECT_RATIO


@dataclass(frozen=True, slots=True)
class VideoBounds:
    """What the loaded checkpoint asks of a video.

    factor: height and width become multiples of it (patch_size x merge_size).
    temporal_factor: frames of a temporal patch.
    min_pixels, max_pixels: bounds of frames x height x width after sampling and resizing.
    frames_per_second: how often to look; min_frames, max_frames: how often at least and at most.
    """

    factor: int
    temporal_factor: int
    min_pixels: int
    max_pixels: int
    frames_per_second: float = 2.0
    min_frames: int = 4
    max_frames: int = 768


def sample_indices(num_frames: int, frame_rate: float, bounds: VideoBounds) -> list[int]:
    """Choose frames evenly over the whole video, the first and the last among them.

    num_frames: at least 1. frame_rate: of the file, frames a second, above 0.

    Source: transformers 5.23 `Qwen3VLVideoProcessor.sample_frames`;
    tests/service/media/test_sampling.py proves equality.
    """
    wanted = int(num_frames / frame_rate * bounds.frames_per_second)
    wanted = min(max(wanted, bounds.min_frames), bounds.max_frames, num_frames)
    if wanted == 1:
        return [0]
    step = (num_frames - 1) / (wanted - 1)
    return [round(place * step) for place in range(wanted - 1)] + [num_frames - 1]


def patch_times(indices: list[int], frame_rate: float, temporal_factor: int) -> list[float]:
    """Tell when each temporal patch is, in seconds: midway between its first and last frame.

    The last frame is repeated until it fills its patch.

    Source: transformers 5.23 `Qwen3VLProcessor._calculate_timestamps`.
    """
    padded = indices + indices[-1:] * (-len(indices) % temporal_factor)
    times = [index / frame_rate for index in padded]
    starts = range(0, len(times), temporal_factor)
    return [(times[start] + times[start + temporal_factor - 1]) / 2 for start in starts]


def smart_resize_frames(
    num_frames: int, height: int, width: int, bounds: VideoBounds
) -> tuple[int, int]:
    """Choose the height and width of all frames: multiples of factor, the sum within the bounds.

    num_frames: as sampled, before the last one is repeated. The floor of one factor a side wins
    where a slim video cannot meet the upper bound.

    Raises:
        ValueError: one side is more than 200 times the other, or there are too few frames.

    Source: transformers 5.23 `smart_resize` of Qwen3-VL's video processor, which is another than
    for pictures; tests/service/media/test_sampling.py proves equality.
    """
    factor, temporal_factor = bounds.factor, bounds.temporal_factor
    if num_frames < temporal_factor:
        raise ValueError("too few frames")
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ValueError("aspect ratio")
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    volume = round(num_frames / temporal_factor) * temporal_factor * new_height * new_width
    if volume > bounds.max_pixels:
        shrink = math.sqrt((num_frames * height * width) / bounds.max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif volume < bounds.min_pixels:
        grow = math.sqrt(bounds.min_pixels / (num_frames * height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width
