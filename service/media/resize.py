"""The size a picture has for the model. Pure arithmetic: knows no picture library."""

import math
from dataclasses import dataclass

MAX_ASPECT_RATIO = 200


@dataclass(frozen=True, slots=True)
class ResizeBounds:
    """What the loaded checkpoint asks of a picture's size.

    factor: height and width become multiples of it (patch_size x merge_size).
    min_pixels, max_pixels: bounds of the area after resizing; at least 1.
    """

    factor: int
    min_pixels: int
    max_pixels: int


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Choose the height and width nearest to the picture's own that the model can take.

    Both are multiples of factor and the area lies within the bounds; the aspect ratio is kept as
    closely as that allows. The lower bound wins where a slim picture cannot meet both.

    Raises:
        ValueError: one side is more than 200 times the other.

    Source: transformers 5.23 `smart_resize` of Qwen2-VL; tests/service/media/test_resize.py
    proves equality.
    """
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ValueError("aspect ratio")
    # Python's round: halves go to the even multiple, as in the reference.
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width
