"""Why a medium was refused, as a word that crosses from a decoder process; texts are elsewhere."""

from enum import StrEnum


class Refusal(StrEnum):
    """The finding about one file; the values are the codes that clients see."""

    EMPTY = "image_empty"
    FORMAT_UNSUPPORTED = "image_format_unsupported"
    INVALID = "image_invalid"
    TRUNCATED = "image_truncated"
    ASPECT_RATIO = "image_aspect_ratio"
    MEMORY_EXCEEDED = "media_memory_exceeded"
    TOO_MANY_PIXELS = "image_too_many_pixels"
    PDF_ENCRYPTED = "pdf_encrypted"
    PDF_INVALID = "pdf_invalid"
    PDF_PAGE_TOO_LARGE = "pdf_page_too_large"
    PDF_PAGES_INVALID = "pdf_pages_invalid"
    PDF_TOO_MANY_PAGES = "pdf_too_many_pages"
    VIDEO_FORMAT_UNSUPPORTED = "video_format_unsupported"
    VIDEO_INVALID = "video_invalid"
    VIDEO_TOO_LONG = "video_too_long"
    VIDEO_TOO_MANY_PIXELS = "video_too_many_pixels"
    VIDEO_UNSUPPORTED = "video_unsupported"


class MediumRefused(Exception):
    """A file cannot be used. Carries the finding alone, never a library's text.

    num_pages: of the document, with a refusal that speaks of its pages; else 0.
    """

    def __init__(self, refusal: Refusal, *, num_pages: int = 0) -> None:
        super().__init__(refusal)
        self.refusal = refusal
        self.num_pages = num_pages
