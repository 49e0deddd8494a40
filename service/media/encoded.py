"""A medium's bytes as they came: a picture's, a document's or a video's file, not yet looked at."""

import msgspec


class EncodedFile(msgspec.Struct, frozen=True):
    """One file that a request brought.

    param: the request field it came from, so that a refusal can name it.
    """

    encoded: bytes
    param: str
