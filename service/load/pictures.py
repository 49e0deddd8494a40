"""Pictures to ask about: every seed gives one of its own, always the same.

Smooth like a photograph, with some grain: noise alone would be a file larger than its pixels.
"""

import io
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PHOTO_SIZE = (4000, 3000)


@lru_cache(2048)  # every server of a round gets the same ones
def png(*seed: int, side: int = 256) -> bytes:
    """Draw a square PNG."""
    generator = np.random.default_rng(seed)
    grain = generator.integers(0, 6, (side, side, 1), dtype=np.uint8)
    return _encode(_surface(generator, (side, side)) + grain, "PNG", compress_level=1)


@lru_cache(128)
def photo(*seed: int) -> bytes:
    """Draw a JPEG of 12 megapixels, about 3 MB."""
    generator = np.random.default_rng(seed)
    return _encode(_surface(generator, PHOTO_SIZE) + _photo_grain(), "JPEG", quality=88)


@cache
def _photo_grain() -> NDArray[np.uint8]:
    width, height = PHOTO_SIZE
    return np.random.default_rng(0).integers(0, 24, (height, width, 1), dtype=np.uint8)


def _surface(generator: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    colours = generator.integers(0, 220, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC))


def _encode(pixels: NDArray[np.uint8], file_format: str, **options: int) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, file_format, **options)
    return encoded.getvalue()
