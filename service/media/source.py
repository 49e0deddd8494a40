"""Tells by its form where a text says a medium's bytes are: within it, elsewhere, or uploaded."""

import re

from service.conversation import Inline, Remote, Source, Stored
from service.errors import ImageRefused

# Base64's alphabet has no hyphen, so no picture looks like an id.
_FILE_ID = re.compile(r"file-[A-Za-z0-9]{1,64}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_MAX_SCHEME_CHARS = 32


def source_of_url(url: str, param: str) -> Source:
    """Read what a field for URLs holds: a `data:`, http or https URL, or a file's id.

    Raises:
        ImageRefused: `image_url_scheme` for another scheme, `image_url_invalid` for no URL.
    """
    if _FILE_ID.fullmatch(url):
        return Stored(url)
    scheme = _SCHEME.match(url)
    match scheme[0].lower() if scheme else "":
        case "data:":
            return Inline(url)
        case "http:" | "https:":
            return Remote(url)
        case "":
            raise ImageRefused(
                "image_url_invalid", "This is no URL: send data:, http: or https:.", param=param
            )
        case _:
            raise ImageRefused(
                "image_url_scheme", "Only data:, http: and https: URLs are taken.", param=param
            )


def source_of_text(text: str, param: str) -> Source:
    """Read what a field for pictures in any form holds: as for URLs, and bare base64.

    Raises:
        ImageRefused: as source_of_url does.
    """
    # Nor has it a colon.
    if _FILE_ID.fullmatch(text) or _SCHEME.match(text, 0, _MAX_SCHEME_CHARS):
        return source_of_url(text, param)
    return Inline(text)
