"""What a file says of itself before any decoder runs. Pure bytes: no picture library."""

import zlib
from typing import Literal, TypeAlias

from service.media.refusal import MediumRefused, Refusal

MediaKind: TypeAlias = Literal["image", "document", "video"]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIGNATURES = {
    b"\xff\xd8\xff": "jpeg",
    _PNG_SIGNATURE: "png",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"BM": "bmp",
    b"II*\x00": "tiff",
    b"MM\x00*": "tiff",
    b"II+\x00": "tiff",
    b"MM\x00+": "tiff",
}
# By their order a file is told that names several: a picture may also call itself a film.
_BRANDS = {
    "avif": {b"avif", b"avis"},
    "heic": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"},
    "mov": {b"qt  "},
    "mp4": {
        *(b"isom", b"iso2", b"iso3", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"avc1"),
        *(b"hvc1", b"av01", b"dash", b"M4V ", b"MSNV", b"3gp4", b"3gp5", b"3gp6"),
    },
}
_MAX_PIECES = 16_384
_MATROSKA_SIGNATURE = b"\x1a\x45\xdf\xa3"
# The first kilobyte may hold other things before it; readers have always allowed for that.
_PDF_HEAD_BYTES = 1024
_VIDEO_FORMATS = ("mp4", "mov", "webm", "mkv")


def sniff(encoded: bytes) -> str | None:
    """Name the format by the first bytes; None for anything this service never decodes."""
    for signature, file_format in _SIGNATURES.items():
        if encoded.startswith(signature):
            return file_format
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "webp"
    if encoded[4:8] == b"ftyp":
        return _sniff_brands(encoded)
    if encoded.startswith(_MATROSKA_SIGNATURE):
        return "webm" if b"webm" in encoded[:64] else "mkv"
    return "pdf" if encoded.find(b"%PDF-", 0, _PDF_HEAD_BYTES) >= 0 else None


def kind_of(encoded: bytes) -> MediaKind | None:
    """Tell what a file is by its first bytes; None as in sniff."""
    match sniff(encoded):
        case None:
            return None
        case "pdf":
            return "document"
        case file_format:
            return "video" if file_format in _VIDEO_FORMATS else "image"


def _sniff_brands(encoded: bytes) -> str | None:
    box = encoded[8 : min(int.from_bytes(encoded[:4]), 256)]
    brands = {box[i : i + 4] for i in range(0, len(box), 4) if i != 4}  # 4 is the minor version
    for file_format, known in _BRANDS.items():
        if brands & known:
            return file_format
    return None


def check_pieces(encoded: bytes, file_format: str) -> None:
    """Refuse a PNG or JPEG in absurdly many pieces before a reader walks them one by one.

    A megabyte of them takes a reader a second; an honest file has at most some thousand.

    Raises:
        MediumRefused: INVALID.
    """
    match file_format:
        case "png":
            too_many = _num_chunks(encoded) > _MAX_PIECES
        case "jpeg":
            too_many = _num_markers(encoded) > _MAX_PIECES
        case _:
            return
    if too_many:
        raise MediumRefused(Refusal.INVALID)


def _num_chunks(encoded: bytes) -> int:
    """Count a PNG's chunks as far as the limit."""
    position, count = len(_PNG_SIGNATURE), 0
    while position + 12 <= len(encoded) and count <= _MAX_PIECES:
        position += 12 + int.from_bytes(encoded[position : position + 4])
        count += 1
    return count


def _num_markers(encoded: bytes) -> int:
    """Count a JPEG's markers before its first scan, and the bytes that fill up between them."""
    position, count = 2, 0
    while position + 4 <= len(encoded) and count <= _MAX_PIECES:
        count += 1
        if encoded[position] != 0xFF or encoded[position + 1] == 0xFF:
            position += 1  # filling, or lost: either way a byte that is looked at alone
        elif encoded[position + 1] == 0xDA:
            break
        else:
            position += 2 + int.from_bytes(encoded[position + 2 : position + 4])
    return count


def check_png(encoded: bytes) -> None:
    """Check the length and checksum of every chunk, which Pillow leaves out for pixel data.

    Raises:
        MediumRefused: TRUNCATED if the file ends before its end chunk, INVALID for a checksum.
    """
    view = memoryview(encoded)
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(encoded):
        end = position + 12 + int.from_bytes(view[position : position + 4])
        if end > len(encoded):
            break
        if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            raise MediumRefused(Refusal.INVALID)
        if encoded.startswith(b"IEND", position + 4):
            return
        position = end
    raise MediumRefused(Refusal.TRUNCATED)


def ends_early(encoded: bytes, file_format: str) -> bool:
    """Whether a file that failed to decode lacks its end, rather than being broken inside."""
    match file_format:
        case "jpeg":  # no end marker after the last scan began
            return encoded.rfind(b"\xff\xd9") <= encoded.rfind(b"\xff\xda")
        case "gif":
            return not encoded.endswith(b"\x3b")
        case "webp":
            return len(encoded) < 8 + int.from_bytes(encoded[4:8], "little")
        case "bmp":
            return len(encoded) < int.from_bytes(encoded[2:6], "little")
        case "avif" | "heic":
            return _boxes_end(encoded) > len(encoded)
        case _:  # a PNG's chunks are checked before; a TIFF has no order to tell by
            return False


def _boxes_end(encoded: bytes) -> int:
    position = 0
    while position < len(encoded):
        size = int.from_bytes(encoded[position : position + 4])
        if size == 1:
            size = int.from_bytes(encoded[position + 8 : position + 16])
        if size < 8:  # 0 reaches to the end of the file; other values are broken
            return len(encoded)
        position += size
    return position
