"""One picture's bytes to the pixels the model sees; runs in a decoder process.

Imports Pillow and the standard library only, so that such a process starts quickly. Refuses by
MediumRefused alone: nothing of a library's text leaves.
"""

import hashlib
import io
import struct
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from service.media.colour import to_upright_rgb
from service.media.container import check_pieces, check_png, ends_early, sniff
from service.media.decoded_image import DecodedImage
from service.media.refusal import MediumRefused, Refusal
from service.media.resize import ResizeBounds, smart_resize

# Called by name, not through `Image.open`: no other plugin can ever see a client's bytes.
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
}


@dataclass(frozen=True, slots=True)
class SourceBounds:
    """Which files are taken.

    formats: names that `container.sniff` gives. max_pixels: width times height in the header.
    """

    formats: tuple[str, ...]
    max_pixels: int


def decode(encoded: bytes, source: SourceBounds, bounds: ResizeBounds) -> DecodedImage:
    """Decode the first frame and resize it, bicubic, as transformers' Pillow processor does.

    A large JPEG is decoded whole: its own reduced sizes are quicker, but give other pixels.

    Raises:
        MediumRefused: with the finding.
    """
    with _opened(encoded, source) as (image, file_format):
        target_size(
            image.height, image.width, bounds
        )  # refuses an impossible shape before the decoder runs
        # Read before `load` consumes the tiles.
        deep_colour = any(";16" in str(tile[3]) for tile in image.tile)
        image.load()
        upright, notes = to_upright_rgb(image, deep_colour=deep_colour)
        if getattr(image, "is_animated", False):
            notes = ("first of several frames", *notes)
    height, width = target_size(upright.height, upright.width, bounds)
    resized = upright.resize((width, height), Image.Resampling.BICUBIC)
    pixels = resized.tobytes()
    return DecodedImage(
        height=height,
        width=width,
        pixels=pixels,
        content_hash=content_hash(height, width, pixels),
        source_height=upright.height,
        source_width=upright.width,
        source_format=file_format,
        source_mode=image.mode,
        notes=notes,
    )


def measure(encoded: bytes, source: SourceBounds) -> int:
    """Read the number of pixels from the header, without decoding.

    Raises:
        MediumRefused: with the finding.
    """
    with _opened(encoded, source) as (image, _):
        return image.width * image.height


def content_hash(height: int, width: int, pixels: bytes) -> bytes:
    """Hash what the model sees, shape included: equal pixels of another shape differ."""
    digest = hashlib.blake2b(struct.pack("<II", height, width), digest_size=32)
    digest.update(pixels)
    return digest.digest()


def target_size(height: int, width: int, bounds: ResizeBounds) -> tuple[int, int]:
    """Do as `smart_resize`.

    Raises:
        MediumRefused: ASPECT_RATIO.
    """
    try:
        return smart_resize(
            height,
            width,
            factor=bounds.factor,
            min_pixels=bounds.min_pixels,
            max_pixels=bounds.max_pixels,
        )
    except ValueError as error:
        raise MediumRefused(Refusal.ASPECT_RATIO) from error


@contextmanager
def _opened(encoded: bytes, source: SourceBounds) -> Generator[tuple[ImageFile.ImageFile, str]]:
    """Open a picture whose header is within bounds; whatever fails in the block is a finding."""
    file_format = _accepted_format(encoded, source)
    # Our own bound replaces Pillow's, whose first half only warns.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_pieces(encoded, file_format)
            image = _reader(file_format)(io.BytesIO(encoded))
            _check_before_decoding(image, encoded, file_format, source)
            yield image, file_format
    except (MediumRefused, MemoryError):
        raise
    except Exception as error:  # hostile bytes make Pillow raise nearly anything
        early = ends_early(encoded, file_format)
        raise MediumRefused(Refusal.TRUNCATED if early else Refusal.INVALID) from error


def _accepted_format(encoded: bytes, source: SourceBounds) -> str:
    if not encoded:
        raise MediumRefused(Refusal.EMPTY)
    file_format = sniff(encoded)
    if file_format is None or file_format not in source.formats:
        raise MediumRefused(Refusal.FORMAT_UNSUPPORTED)
    if file_format in ("avif", "webp") and not features.check(file_format):
        raise MediumRefused(Refusal.FORMAT_UNSUPPORTED)
    return file_format


def _reader(file_format: str) -> type[ImageFile.ImageFile]:
    if file_format != "heic":
        return _READERS[file_format]
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise MediumRefused(Refusal.FORMAT_UNSUPPORTED) from error
    # Upright by itself: it forgets the EXIF orientation, which repeats the file's own turn.
    return cast("type[ImageFile.ImageFile]", HeifImageFile)


def _check_before_decoding(
    image: ImageFile.ImageFile, encoded: bytes, file_format: str, source: SourceBounds
) -> None:
    if image.width * image.height > source.max_pixels:
        raise MediumRefused(Refusal.TOO_MANY_PIXELS)
    if file_format == "png":
        check_png(encoded)
