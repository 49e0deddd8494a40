"""HEIC pictures, where the extra is installed and the setting names them."""

import io
import sys

import pytest
from PIL import Image

from service.media.decode import SourceBounds, decode
from service.media.refusal import MediumRefused, Refusal
from service.media.resize import ResizeBounds

pillow_heif = pytest.importorskip("pillow_heif")
SOURCE = SourceBounds(formats=("heic",), max_pixels=10_000)
BOUNDS = ResizeBounds(factor=32, min_pixels=1024, max_pixels=65_536)


def heic(image: Image.Image, orientation: int = 1) -> bytes:
    """Encode; an orientation is written as the file's own turn, as phones do."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    # With EXIF the encoder writes the turn and keeps the pixels as they are.
    pillow_heif.from_pillow(image).save(file, exif=exif.tobytes(), quality=95)
    return file.getvalue()


def finding(encoded: bytes, source: SourceBounds = SOURCE) -> Refusal:
    with pytest.raises(MediumRefused) as caught:
        decode(encoded, source, BOUNDS)
    return caught.value.refusal


def quarter() -> Image.Image:
    image = Image.new("RGB", (96, 64), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 48, 32))
    return image


@pytest.mark.parametrize(
    ("orientation", "size", "red_at"),
    [
        pytest.param(1, (96, 64), (24, 16), id="upright"),
        pytest.param(3, (96, 64), (72, 48), id="on its head"),
        pytest.param(6, (64, 96), (48, 24), id="to the right"),
        pytest.param(8, (64, 96), (16, 72), id="to the left"),
    ],
)
def test_a_picture_is_turned_once(orientation, size, red_at):
    decoded = decode(heic(quarter(), orientation), SOURCE, BOUNDS)
    picture = Image.frombytes("RGB", (decoded.width, decoded.height), decoded.pixels)
    red, _, blue = picture.split()
    x, y = red_at

    assert picture.size == size
    assert red.crop((x, y, x + 1, y + 1)).tobytes()[0] > 240
    assert blue.crop((x, y, x + 1, y + 1)).tobytes()[0] < 15
    assert decoded.source_format == "heic"


def test_colour_hidden_by_alpha_stays_hidden():
    decoded = decode(heic(Image.new("RGBA", (64, 64), (255, 0, 0, 0))), SOURCE, BOUNDS)

    assert min(decoded.pixels) > 250


def test_size_and_end_are_checked():
    assert finding(heic(Image.new("RGB", (128, 128)))) == Refusal.TOO_MANY_PIXELS
    encoded = heic(quarter())
    assert finding(encoded[: len(encoded) * 9 // 10]) == Refusal.TRUNCATED


def test_without_the_setting_or_the_extra_it_is_refused(monkeypatch):
    encoded = heic(quarter())
    assert finding(encoded, SourceBounds(("jpeg", "avif"), 10_000)) == Refusal.FORMAT_UNSUPPORTED
    monkeypatch.setitem(sys.modules, "pillow_heif", None)

    assert finding(encoded) == Refusal.FORMAT_UNSUPPORTED
