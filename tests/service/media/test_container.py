"""What files say of themselves in their first bytes."""

import io
import zlib

import pytest
from PIL import Image

from service.media.container import check_pieces, kind_of, sniff
from service.media.refusal import MediumRefused, Refusal


def ftyp(*brands: bytes) -> bytes:
    box = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return (len(box) + 4).to_bytes(4) + box + bytes(40)


@pytest.mark.parametrize(
    ("encoded", "file_format", "kind"),
    [
        pytest.param(b"\xff\xd8\xff\xe0", "jpeg", "image", id="jpeg"),
        pytest.param(b"RIFF\0\0\0\0WEBP", "webp", "image", id="webp"),
        pytest.param(ftyp(b"avif", b"mif1"), "avif", "image", id="avif"),
        pytest.param(ftyp(b"mif1", b"heic"), "heic", "image", id="heic by a compatible brand"),
        pytest.param(ftyp(b"isom", b"iso2", b"avc1"), "mp4", "video", id="mp4"),
        pytest.param(ftyp(b"qt  "), "mov", "video", id="mov"),
        pytest.param(
            ftyp(b"heic", b"isom"), "heic", "image", id="a picture that calls itself film"
        ),
        pytest.param(b"\x1a\x45\xdf\xa3\x9fB\x82\x84webm", "webm", "video", id="webm"),
        pytest.param(b"\x1a\x45\xdf\xa3\x9fB\x82\x88matroska", "mkv", "video", id="mkv"),
        pytest.param(b"%PDF-1.7\n", "pdf", "document", id="pdf"),
        pytest.param(b"\xef\xbb\xbf\n%PDF-1.4", "pdf", "document", id="pdf behind other bytes"),
        pytest.param(bytes(1024) + b"%PDF-1.4", None, None, id="pdf too far behind"),
        pytest.param(b"\xff\xd8\xff%PDF-1.4", "jpeg", "image", id="what comes first counts"),
        pytest.param(ftyp(b"M4A "), None, None, id="sound"),
        pytest.param(ftyp(b"mif1"), None, None, id="an unnamed codec"),
        pytest.param(b"PK\x03\x04", None, None, id="zip"),
        pytest.param(b"", None, None, id="nothing"),
    ],
)
def test_a_file_is_known_by_its_first_bytes(encoded, file_format, kind):
    assert (file_format, kind) == (sniff(encoded), kind_of(encoded))


def jpeg(between: bytes = b"") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "JPEG")
    return file.getvalue()[:2] + between + file.getvalue()[2:]


def png(chunks: bytes = b"") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "PNG")
    return file.getvalue()[:33] + chunks + file.getvalue()[33:]


EMPTY_CHUNK = bytes(4) + b"teSt" + zlib.crc32(b"teSt").to_bytes(4)
COMMENT = b"\xff\xfe\x00\x02"


@pytest.mark.parametrize(
    "encoded", [jpeg(), jpeg(COMMENT * 1000), jpeg(b"\xff" * 1000), png(), png(EMPTY_CHUNK * 1000)]
)
def test_a_picture_in_many_pieces_is_taken(look, encoded):
    assert look(encoded).source_width == 32


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(jpeg(b"\xff" * 10_000_000), id="filling"),
        pytest.param(jpeg(COMMENT * 2_000_000), id="comments"),
        pytest.param(png(EMPTY_CHUNK * 1_000_000), id="chunks"),
    ],
)
def test_a_picture_in_absurdly_many_pieces_is_refused_unread(encoded):
    with pytest.raises(MediumRefused) as caught:
        check_pieces(encoded, sniff(encoded) or "")

    assert caught.value.refusal == Refusal.INVALID
