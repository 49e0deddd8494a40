"""Pictures made in code, and the bounds of the published checkpoints."""

import io
from collections.abc import Callable

import pytest
from PIL import Image

from service.media.decode import SourceBounds, decode
from service.media.decoded_image import DecodedImage
from service.media.resize import ResizeBounds

ALL_FORMATS = ("jpeg", "png", "webp", "gif", "bmp", "avif", "tiff")


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    def run(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
        file = io.BytesIO()
        image.save(file, file_format, **options)
        return file.getvalue()

    return run


@pytest.fixture(scope="session")
def source() -> SourceBounds:
    return SourceBounds(formats=ALL_FORMATS, max_pixels=36_000_000)


@pytest.fixture(scope="session")
def look(source: SourceBounds) -> Callable[[bytes], DecodedImage]:
    """Decode a small picture to a small size."""

    def run(encoded: bytes) -> DecodedImage:
        return decode(encoded, source, ResizeBounds(factor=32, min_pixels=1024, max_pixels=65_536))

    return run


@pytest.fixture(scope="session")
def colour_of(look: Callable[[bytes], DecodedImage]) -> Callable[[bytes], tuple[int, ...]]:
    """The one RGB colour of a picture of one colour."""

    def run(encoded: bytes) -> tuple[int, ...]:
        pixels = look(encoded).pixels
        colours = {pixels[i : i + 3] for i in range(0, len(pixels), 3)}
        assert len(colours) == 1
        return tuple(colours.pop())

    return run
