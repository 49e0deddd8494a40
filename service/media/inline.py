"""Files inside the request's text: data URLs and bare base64, read strictly."""

import binascii
import re

from service.conversation import MediaKind
from service.errors import ImageRefused
from service.media.budget import MediaLimits, check_file_bytes

_HEADER = re.compile(
    r"data:(?P<type>[a-z0-9]+/[a-z0-9][a-z0-9.+-]*)(?:;[a-z0-9-]+=[a-z0-9.+_-]+)*;base64",
    re.IGNORECASE | re.ASCII,
)
_TYPES: dict[MediaKind, str] = {
    "image": "image/<type>",
    "document": "application/pdf",
    "video": "video/<type>",
}
# A sender that does not know what it sends; the bytes say it.
_ANY_TYPE = "application/octet-stream"
_MAX_HEADER_CHARS = 256
# Between pieces other threads get their turn, so a caller may move a big text off the event loop.
_PIECE_CHARS = 256 * 1024


def decode_inline(
    text: str,
    param: str,
    limits: MediaLimits | None = None,
    kinds: tuple[MediaKind, ...] = ("image",),
) -> bytes:
    """Read a data URL (`data:image/…;base64,…`) or bare base64 into the encoded file's bytes.

    Standard alphabet, full padding, no spaces or line breaks. About 1 ms for a megabyte. The bytes
    are not looked at; what they are is for the decoder to say. kinds: what a data URL may announce.

    Raises:
        ImageRefused: `image_url_invalid` for any other data URL, `image_base64_invalid`.
        TooLarge: as check_file_bytes, told from the text's length before anything is decoded.
    """
    start = _payload_start(text, param, kinds)
    num_chars = len(text) - start
    padding = text[-2:].count("=") if num_chars else 0
    check_file_bytes(num_chars // 4 * 3 - padding, param, kinds, limits or MediaLimits())
    first_padding = text.find("=", start)
    if num_chars % 4 or (first_padding >= 0 and first_padding != len(text) - padding):
        raise _base64_invalid(param)
    try:
        return b"".join(
            binascii.a2b_base64(text[i : i + _PIECE_CHARS], strict_mode=True)
            for i in range(start, len(text), _PIECE_CHARS)
        )
    except ValueError as error:  # binascii.Error, or letters outside ASCII
        raise _base64_invalid(param) from error


def _payload_start(text: str, param: str, kinds: tuple[MediaKind, ...]) -> int:
    if text[:5].lower() != "data:":
        return 0
    comma = text.find(",", 0, _MAX_HEADER_CHARS)
    header = _HEADER.fullmatch(text, 0, comma) if comma >= 0 else None
    if header is None or not _is_taken(header["type"], kinds) or text.find("%", comma) >= 0:
        types = " or ".join(_TYPES[kind] for kind in kinds)
        raise ImageRefused(
            "image_url_invalid",
            f"A data URL must read data:{types};base64,<data>, without percent escapes.",
            param=param,
        )
    return comma + 1


def _is_taken(media_type: str, kinds: tuple[MediaKind, ...]) -> bool:
    announced = media_type.lower()
    if len(kinds) > 1 and announced == _ANY_TYPE:
        return True
    return any(announced.startswith(_TYPES[kind].removesuffix("<type>")) for kind in kinds)


def _base64_invalid(param: str) -> ImageRefused:
    return ImageRefused(
        "image_base64_invalid",
        "The image is not valid base64: standard alphabet, padded, without spaces.",
        param=param,
    )
