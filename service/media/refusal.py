"""Why a picture was refused, as a word that crosses from a decoder process; texts are elsewhere."""

from enum import StrEnum


class Refusal(StrEnum):
    """The finding about one picture; the values are the codes that clients see."""

    EMPTY = "image_empty"
    FORMAT_UNSUPPORTED = "image_format_unsupported"
    INVALID = "image_invalid"
    TRUNCATED = "image_truncated"
    ASPECT_RATIO = "image_aspect_ratio"
    TOO_MANY_PIXELS = "image_too_many_pixels"


class PictureRefused(Exception):
    """A picture cannot be used. Carries the finding alone, never a library's text."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal
