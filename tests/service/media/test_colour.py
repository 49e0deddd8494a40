"""Golden colours: one colour in, the RGB value it must become."""

import io
import struct
import zlib

import pytest
from PIL import Image, ImageCms

from service.media.decode import decode
from service.media.refusal import MediumRefused, Refusal
from service.media.resize import ResizeBounds

SIZE = (64, 64)
RED, WHITE = (255, 0, 0), (255, 255, 255)


def chunk(name: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def png(
    bit_depth: int,
    colour_type: int,
    pixel: bytes,
    *chunks: tuple[bytes, bytes],
    size: tuple[int, int] = SIZE,
    rows: bytes | None = None,
) -> bytes:
    """A PNG, of one colour unless rows are given, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", *size, bit_depth, colour_type, 0, 0, 0)
    if rows is None:
        rows = (b"\0" + pixel * size[0]) * size[1]
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def palette(*colours: int) -> Image.Image:
    image = Image.new("P", SIZE, 1)
    image.putpalette([0, 0, 0, *colours])
    return image


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        pytest.param("1", 1, WHITE, id="one bit"),
        pytest.param("L", 100, (100, 100, 100), id="grey"),
        pytest.param("LA", (100, 255), (100, 100, 100), id="grey, opaque"),
        pytest.param("LA", (0, 0), WHITE, id="grey hidden by alpha"),
        pytest.param("RGB", RED, RED, id="colour"),
        pytest.param("RGBA", (255, 0, 0, 255), RED, id="colour, opaque"),
        pytest.param("RGBA", (255, 0, 0, 0), WHITE, id="colour hidden by alpha"),
        pytest.param("RGBA", (255, 0, 0, 128), (255, 127, 127), id="half transparent"),
        pytest.param("I;16", 0, (0, 0, 0), id="16-bit black"),
        pytest.param("I;16", 257, (1, 1, 1), id="16-bit, first level"),
        pytest.param("I;16", 32_896, (128, 128, 128), id="16-bit middle"),
        pytest.param("I;16", 65_535, WHITE, id="16-bit white"),
    ],
)
def test_png_modes_become_rgb_on_white(mode, value, expected, encode, colour_of):
    assert expected == colour_of(encode(Image.new(mode, SIZE, value)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({}, (10, 20, 30), id="opaque"),
        pytest.param({"transparency": 1}, WHITE, id="one transparent entry"),
        pytest.param({"transparency": b"\xff\x80"}, (132, 137, 142), id="alpha per entry"),
    ],
)
def test_palettes_keep_their_transparency(options, expected, encode, colour_of):
    assert expected == colour_of(encode(palette(10, 20, 30), **options))


@pytest.mark.parametrize(
    ("mode", "value", "key"),
    [
        pytest.param("1", 1, 1, id="one bit"),
        pytest.param("L", 7, 7, id="grey"),
        pytest.param("RGB", RED, RED, id="colour"),
        pytest.param("I;16", 515, 515, id="16-bit grey"),
    ],
)
def test_a_colour_key_hides_its_colour(mode, value, key, encode, colour_of):
    encoded = encode(Image.new(mode, SIZE, value), transparency=key)

    assert colour_of(encoded) == WHITE


def test_a_colour_key_hides_no_other_colour(encode, colour_of):
    encoded = encode(Image.new("I;16", SIZE, 514), transparency=515)

    assert colour_of(encoded) == (2, 2, 2)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        pytest.param((65_535, 0, 32_896), (255, 0, 128), id="scaled, not clipped"),
        pytest.param((300, 300, 300), (1, 1, 1), id="dark"),
    ],
)
def test_16_bit_colour_is_scaled(levels, expected, colour_of):
    assert expected == colour_of(png(16, 2, struct.pack(">3H", *levels)))


def test_16_bit_colour_key_hides_its_colour(colour_of):
    key = struct.pack(">3H", 65_535, 0, 300)

    assert colour_of(png(16, 2, key, (b"tRNS", key))) == WHITE


def test_16_bit_alpha_lies_on_white(colour_of):
    assert colour_of(png(16, 6, struct.pack(">4H", 65_535, 0, 0, 0x8000))) == (255, 127, 127)
    assert colour_of(png(16, 4, struct.pack(">2H", 0, 0))) == WHITE


def test_every_16_bit_grey_is_a_257th_rounded(look):
    lines = (struct.pack(">256H", *range(y * 256, y * 256 + 256)) for y in range(256))
    encoded = png(16, 0, b"", size=(256, 256), rows=b"".join(b"\0" + line for line in lines))

    assert bytes(round(value / 257) for value in range(65_536)) == look(encoded).pixels[::3]


@pytest.mark.parametrize(
    ("ink", "expected"),
    [
        pytest.param((0, 0, 0, 0), WHITE, id="no ink"),
        pytest.param((0, 0, 0, 255), (0, 0, 0), id="black"),
        pytest.param((0, 255, 255, 0), RED, id="red"),
        pytest.param((255, 0, 0, 128), (0, 127, 127), id="dark cyan"),
    ],
)
@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_follows_the_ink_formula(ink, expected, file_format, encode, colour_of):
    encoded = encode(Image.new("CMYK", SIZE, ink), file_format)
    if file_format == "JPEG":
        assert b"Adobe" in encoded  # so the values in the file are inverted
    actual = colour_of(encoded)

    assert all(abs(a - b) <= 1 for a, b in zip(expected, actual, strict=True))


def test_ycck_is_read_as_inverted_ink(encode, colour_of):
    # Stored bytes are 255 - ink. Once the Adobe marker says YCC + K, (149, 43, 21) is the RGB
    # triple (0, 255, 0), whose complement is the inverted ink: magenta alone.
    stored = (149, 43, 21, 255)
    image = Image.new("CMYK", SIZE, tuple(255 - value for value in stored))
    encoded = bytearray(encode(image, "JPEG", quality=100))
    encoded[encoded.index(b"Adobe") + 11] = 2
    actual = colour_of(bytes(encoded))

    assert all(abs(a - b) <= 3 for a, b in zip((255, 0, 255), actual, strict=True))


@pytest.mark.parametrize(
    ("lab", "expected"),
    [
        pytest.param((255, 0, 0), WHITE, id="white"),
        pytest.param((0, 0, 0), (0, 0, 0), id="black"),
        pytest.param((138, 81, 70), (255, 0, 0), id="red"),
    ],
)
def test_lab_becomes_srgb(lab, expected, encode, colour_of):
    image = Image.frombytes("LAB", SIZE, bytes(lab) * (64 * 64))
    actual = colour_of(encode(image, "TIFF"))

    assert all(abs(a - b) <= 5 for a, b in zip(expected, actual, strict=True))


@pytest.mark.parametrize(
    ("mode", "value"), [pytest.param("F", 0.5, id="float"), pytest.param("I", 1, id="32-bit")]
)
def test_samples_without_a_defined_white_are_refused(mode, value, encode, look):
    encoded = encode(Image.new(mode, SIZE, value), "TIFF")

    with pytest.raises(MediumRefused) as caught:
        look(encoded)
    assert caught.value.refusal == Refusal.FORMAT_UNSUPPORTED


def white_is_zero(encoded: bytes) -> bytes:
    """Flip a little-endian TIFF's photometric tag from black-is-zero to white-is-zero."""
    entry = struct.pack("<HHI", 262, 3, 1)
    assert encoded.count(entry + b"\1\0") == 1
    return encoded.replace(entry + b"\1\0", entry + b"\0\0")


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        pytest.param("L", 55, (200, 200, 200), id="8-bit"),
        pytest.param("I;16", 65_535, (0, 0, 0), id="16-bit"),
    ],
)
def test_tiff_whose_white_is_zero_is_not_a_negative(mode, value, expected, encode, colour_of):
    assert expected == colour_of(white_is_zero(encode(Image.new(mode, SIZE, value), "TIFF")))


def swapped_profile() -> bytes:
    """An sRGB profile whose red and green primaries have changed places."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ", 128), profile.index(b"gXYZ", 128)
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


def test_an_embedded_profile_is_followed(encode, colour_of):
    encoded = encode(Image.new("RGB", SIZE, RED), icc_profile=swapped_profile())
    red, green, blue = colour_of(encoded)

    assert green >= 250
    assert red + blue <= 5


def test_alpha_survives_a_profile(encode, colour_of):
    encoded = encode(Image.new("RGBA", SIZE, (255, 0, 0, 0)), icc_profile=swapped_profile())

    assert colour_of(encoded) == WHITE


def test_an_srgb_profile_leaves_the_pixels_alone(encode, look):
    gradient = Image.frombytes("RGB", (96, 96), bytes(i * 7 % 256 for i in range(96 * 96 * 3)))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    assert look(encode(gradient)) == look(encode(gradient, icc_profile=profile))


@pytest.mark.parametrize(
    "profile",
    [
        pytest.param(b"not a profile", id="garbage"),
        pytest.param(swapped_profile()[:200], id="cut short"),
        pytest.param(
            ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(), id="another mode's"
        ),
    ],
)
def test_a_profile_that_does_not_fit_is_ignored(profile, encode, colour_of):
    assert colour_of(encode(Image.new("RGB", SIZE, RED), icc_profile=profile)) == RED


CORNERS = {(0, 0): RED, (1, 0): (0, 255, 0), (0, 1): (0, 0, 255), (1, 1): (255, 255, 0)}


def as_shot(orientation: int) -> Image.Image:
    """A 96 x 64 picture with a colour in each quarter, stored as that orientation says."""
    upright = Image.new("RGB", (96, 64))
    for (x, y), colour in CORNERS.items():
        upright.paste(colour, (x * 48, y * 32, x * 48 + 48, y * 32 + 32))
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    return upright if undo is None else upright.transpose(undo)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_exif_orientation_comes_out_upright(orientation, file_format, encode, look):
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = look(encode(as_shot(orientation), file_format, exif=exif.tobytes()))
    image = Image.frombytes("RGB", (decoded.width, decoded.height), decoded.pixels)

    assert (96, 64) == (decoded.source_width, decoded.source_height) == image.size
    for (x, y), colour in CORNERS.items():
        left, top = x * 48 + 24, y * 32 + 16
        middle = image.crop((left, top, left + 1, top + 1)).tobytes()
        assert all(abs(a - b) <= 12 for a, b in zip(colour, middle, strict=True))


@pytest.mark.parametrize(
    "exif", [pytest.param(b"Exif\0\0rubbish", id="rubbish"), pytest.param(b"Exif\0\0", id="empty")]
)
def test_broken_exif_is_ignored(exif, encode, colour_of):
    assert colour_of(encode(Image.new("RGB", SIZE, WHITE), "JPEG", exif=exif)) == WHITE


def test_the_first_frame_of_an_animation_is_taken(encode, colour_of):
    first, second = Image.new("RGB", SIZE, RED), Image.new("RGB", SIZE, (0, 0, 255))
    for file_format in ("GIF", "PNG", "TIFF"):
        encoded = encode(first, file_format, save_all=True, append_images=[second] * 5)
        assert colour_of(encoded) == RED
    encoded = encode(first, "WEBP", save_all=True, append_images=[second] * 5, lossless=True)
    assert colour_of(encoded) == RED


def test_colour_is_composed_before_resizing(encode, source):
    """Hidden colour must not bleed in from transparent neighbours when the picture shrinks."""
    image = Image.new("RGBA", (512, 512), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), (0, 0, 256, 512))
    small = ResizeBounds(factor=32, min_pixels=1024, max_pixels=4096)

    assert {255} == set(decode(encode(image), source, small).pixels)


def test_pixels_are_the_only_thing_hashed(encode, look):
    image = Image.new("RGB", SIZE, RED)
    plain = encode(image)
    with io.BytesIO(plain) as file:
        reopened = Image.open(file)
        tagged = encode(reopened, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0", optimize=True)

    assert plain != tagged
    assert look(plain).content_hash == look(tagged).content_hash


@pytest.mark.parametrize(
    ("mode", "value", "notes"),
    [
        pytest.param("RGB", RED, (), id="nothing to do"),
        pytest.param("L", 7, (), id="grey"),
        pytest.param("RGBA", (9, 9, 9, 128), ("alpha laid on white",), id="alpha"),
        pytest.param("I;16", 257, ("16 bits scaled to 8",), id="deep grey"),
    ],
)
def test_what_was_done_to_the_colours_is_told(mode, value, notes, encode, look):
    decoded = look(encode(Image.new(mode, SIZE, value)))

    assert notes == decoded.notes
    assert decoded.source_mode == mode


def test_notes_name_profile_alpha_and_turn_in_their_order(encode, look):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGBA", SIZE, (255, 0, 0, 0))
    decoded = look(encode(image, icc_profile=swapped_profile(), exif=exif.tobytes()))

    assert decoded.notes == (
        "ICC profile to sRGB",
        "alpha laid on white",
        "turned upright from EXIF orientation 6",
    )


def test_notes_tell_of_ink_deep_colour_and_further_frames(encode, look):
    ink = look(encode(Image.new("CMYK", SIZE, (0, 255, 255, 0)), "JPEG"))
    deep = look(png(16, 2, struct.pack(">3H", 65_535, 0, 300)))
    first, second = Image.new("RGB", SIZE, RED), Image.new("RGB", SIZE, WHITE)
    moving = look(encode(first, "PNG", save_all=True, append_images=[second]))

    assert ink.notes == ("ink to colour, without a profile",)
    assert ink.source_mode == "CMYK"
    assert deep.notes == ("16 bits scaled to 8",)
    assert moving.notes == ("first of several frames",)
