"""Broken, hostile and unsupported files: every one is a finding, none an accident."""

import io
import struct
import subprocess
import sys
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from service.media.decode import SourceBounds, content_hash, decode, measure
from service.media.refusal import MediumRefused, Refusal
from service.media.resize import ResizeBounds

ALL_FORMATS = ("jpeg", "png", "webp", "gif", "bmp", "avif", "tiff")
SOURCE = SourceBounds(formats=ALL_FORMATS, max_pixels=1_000_000)
BOUNDS = ResizeBounds(factor=32, min_pixels=1024, max_pixels=65_536)
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def finding(encoded: bytes, source: SourceBounds = SOURCE) -> Refusal:
    with pytest.raises(MediumRefused) as caught:
        decode(encoded, source, BOUNDS)
    return caught.value.refusal


def chunk(name: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def header_only_png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def photo(width: int = 120, height: int = 90) -> Image.Image:
    levels = bytes(i * i // 7 % 256 for i in range(width * height * 3))
    return Image.frombytes("RGB", (width, height), levels)


@pytest.mark.parametrize("file_format", ALL_FORMATS)
def test_every_listed_format_is_read_and_named(file_format, encode):
    decoded = decode(encode(photo(), file_format), SOURCE, BOUNDS)

    assert file_format == decoded.source_format
    assert (decoded.source_height, decoded.source_width) == (90, 120)
    assert decoded.height * decoded.width * 3 == len(decoded.pixels)


@pytest.mark.parametrize("file_format", ALL_FORMATS)
def test_a_format_off_the_list_is_refused(file_format, encode):
    others = tuple(name for name in ALL_FORMATS if name != file_format)
    encoded = encode(photo(), file_format)

    assert finding(encoded, SourceBounds(others, 1_000_000)) == Refusal.FORMAT_UNSUPPORTED


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(b'<svg xmlns="http://www.w3.org/2000/svg"/>', id="svg"),
        pytest.param(b'<?xml version="1.0"?><!DOCTYPE svg SYSTEM "file:///x">', id="xml"),
        pytest.param(b"<!doctype html><title>404</title>", id="html"),
        pytest.param(b"%PDF-1.7\n%\xe2\xe3", id="pdf"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", id="eps"),
        pytest.param(b"\xc5\xd0\xd3\xc6" + bytes(30), id="binary eps"),
        pytest.param(b"\xd7\xcd\xc6\x9a" + bytes(30), id="wmf"),
        pytest.param(b"SIMPLE  =                    T", id="fits"),
        pytest.param(b"8BPS\x00\x01" + bytes(30), id="psd"),
        pytest.param(b"BUFR" + bytes(30), id="bufr"),
        pytest.param(b"GRIB\0\0\0\1" + bytes(30), id="grib"),
        pytest.param(b"\x89HDF\r\n\x1a\n" + bytes(30), id="hdf5"),
        pytest.param(b"\x00\x00\x01\x00" + bytes(30), id="ico"),
        pytest.param(b"P6 1 1 255\n\0\0\0", id="ppm"),
        pytest.param(b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(30), id="jpeg 2000"),
        pytest.param(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(30), id="heic"),
        pytest.param(b"PK\x03\x04" + bytes(30), id="zip"),
        pytest.param(b"\x1f\x8b\x08" + bytes(30), id="gzip"),
        pytest.param(b"#define x_width 1\n#define x_height 1\n", id="xbm"),
        pytest.param(b"\0", id="one byte"),
    ],
)
def test_other_files_never_meet_a_decoder(encoded):
    assert finding(encoded) == Refusal.FORMAT_UNSUPPORTED


def test_no_bytes_are_an_empty_image():
    assert finding(b"") == Refusal.EMPTY


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        pytest.param(header_only_png(100_000, 100_000), Refusal.TOO_MANY_PIXELS, id="too many"),
        pytest.param(header_only_png(2**31 - 1, 2**31 - 1), Refusal.TOO_MANY_PIXELS, id="absurd"),
        pytest.param(header_only_png(1, 100_000), Refusal.ASPECT_RATIO, id="slim"),
        pytest.param(header_only_png(0, 10), Refusal.INVALID, id="no width"),
    ],
)
def test_impossible_shapes_are_refused_from_the_header(encoded, expected):
    assert finding(encoded) == expected


def test_the_pixel_limit_itself_is_allowed(encode):
    encoded = encode(Image.new("L", (100, 90)))
    source = SourceBounds(ALL_FORMATS, 9000)

    assert decode(encoded, source, BOUNDS).source_width == 100
    assert finding(encoded, SourceBounds(ALL_FORMATS, 8999)) == Refusal.TOO_MANY_PIXELS


def test_one_pixel_is_scaled_up(encode):
    decoded = decode(encode(Image.new("RGB", (1, 1), (1, 2, 3))), SOURCE, BOUNDS)

    assert (decoded.height, decoded.width) == (32, 32)
    assert bytes((1, 2, 3)) * 32 * 32 == decoded.pixels


@pytest.mark.parametrize("file_format", ["jpeg", "png", "gif", "webp", "bmp", "avif"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_cut_short_is_told_so(file_format, share, encode):
    encoded = encode(photo(), file_format)

    assert finding(encoded[: int(len(encoded) * share)]) == Refusal.TRUNCATED


@pytest.mark.parametrize("file_format", ALL_FORMATS)
def test_a_file_cut_anywhere_is_decoded_or_refused(file_format, encode):
    encoded = encode(photo(40, 30), file_format)
    for end in range(1, len(encoded), max(1, len(encoded) // 60)):
        with suppress(MediumRefused):
            decode(encoded[:end], SOURCE, BOUNDS)


@pytest.mark.parametrize("name", [b"IHDR", b"IDAT", b"IEND", b"tEXt"])
def test_a_png_with_a_bad_checksum_is_refused(name, encode):
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "some words")
    encoded = bytearray(encode(photo(), pnginfo=notes))
    start = encoded.index(name)
    length = int.from_bytes(encoded[start - 4 : start])
    encoded[start + 4 + length] ^= 1

    assert finding(bytes(encoded)) == Refusal.INVALID


def test_bytes_behind_the_end_of_a_png_do_no_harm(encode):
    assert decode(encode(photo()) + b"trailer", SOURCE, BOUNDS).source_width == 120


def with_chunk(encoded: bytes, name: bytes, body: bytes) -> bytes:
    return encoded[:33] + chunk(name, body) + encoded[33:]


@pytest.mark.parametrize(
    ("name", "head"),
    [
        pytest.param(b"zTXt", b"Comment\0\0", id="text"),
        pytest.param(b"iCCP", b"profile\0\0", id="profile"),
        pytest.param(b"iTXt", b"Comment\0\1\0\0\0", id="international text"),
    ],
)
def test_a_metadata_bomb_is_refused(name, head, encode):
    bomb = zlib.compress(bytes(50_000_000), 9)

    assert finding(with_chunk(encode(photo()), name, head + bomb)) == Refusal.INVALID


def test_pixel_data_shorter_than_the_header_says_is_refused():
    header = struct.pack(">IIBBBBB", 500, 500, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    encoded = SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")

    assert finding(encoded) in {Refusal.INVALID, Refusal.TRUNCATED}


def test_only_the_first_of_many_frames_is_decoded(encode):
    frames = [Image.new("P", (64, 64), i % 2) for i in range(2000)]
    encoded = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], optimize=False)

    assert len(set(decode(encoded, SOURCE, BOUNDS).pixels)) == 1


def test_measuring_reads_the_header_alone(encode):
    assert measure(header_only_png(700, 600), SOURCE) == 420_000
    with pytest.raises(MediumRefused):
        measure(header_only_png(7000, 600), SOURCE)


def test_equal_pixels_of_another_shape_hash_differently():
    pixels = bytes(64 * 32 * 3)

    assert content_hash(64, 32, pixels) != content_hash(32, 64, pixels)
    assert len(content_hash(64, 32, pixels)) == 32


def test_a_refusal_carries_no_library_text(encode):
    with pytest.raises(MediumRefused) as caught:
        decode(encode(photo(), "JPEG")[:500], SOURCE, BOUNDS)

    assert str(caught.value) == "image_truncated"


heads = st.sampled_from(
    [
        b"",
        SIGNATURE,
        SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0)),
        b"\xff\xd8\xff\xe0\0\x10JFIF\0",
        b"GIF89a\x09\0\x09\0\x80\0\0",
        b"RIFF\x40\0\0\0WEBPVP8 ",
        b"BM\x40\0\0\0",
        b"II*\0\x08\0\0\0",
        b"\0\0\0\x1cftypavif\0\0\0\0avifmif1",
    ]
)


@given(heads, st.binary(max_size=400))
def test_random_bytes_are_a_finding_and_nothing_else(head, tail):
    with suppress(MediumRefused):
        decode(head + tail, SOURCE, BOUNDS)


@given(st.sampled_from(ALL_FORMATS), st.data())
def test_damaged_files_are_decoded_or_a_finding(file_format, data):
    file = io.BytesIO()
    photo(24, 20).save(file, file_format)
    encoded = bytearray(file.getvalue())
    places = st.integers(0, len(encoded) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        encoded[place] = data.draw(st.integers(0, 255))
    with suppress(MediumRefused):
        decode(bytes(encoded), SOURCE, BOUNDS)


def test_a_decoder_process_imports_little():
    code = (
        "import sys, service.media.decoder_main;"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)

    heavy = {"litestar", "structlog", "anyio", "asyncio", "numpy", "torch", "inference"}
    heavy |= {"av", "pypdfium2", "pillow_heif"}  # loaded with the first file that needs them
    assert not heavy & set(done.stdout.split())
