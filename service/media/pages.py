"""Which pages of a document a client asked for, read from a text such as `1-3,7`."""

import re
from typing import NamedTuple

from service.errors import RequestInvalid, TooLarge

_RANGES = re.compile(r"\d{1,6}(?:-\d{1,6})?(?:,\d{1,6}(?:-\d{1,6})?)*", re.ASCII)
_MAX_CHARS = 1000


class PageRange(NamedTuple):
    """Pages from first to last, both of them, counted from 1."""

    first: int
    last: int


def read_pages(text: str, *, max_pages: int, param: str) -> tuple[int, ...]:
    """Read page numbers, in the order they were asked for, each page once.

    Raises:
        RequestInvalid: `pdf_pages_invalid`: malformed, a range that runs backwards, a page twice.
        TooLarge: `pdf_too_many_pages`, told before any range is spread out.
    """
    ranges = _ranges(text, param)
    num_pages = sum(last - first + 1 for first, last in ranges)
    if num_pages > max_pages:
        raise too_many_pages(num_pages, max_pages, param)
    numbers = tuple(number for first, last in ranges for number in range(first, last + 1))
    if len(set(numbers)) != len(numbers):
        raise _invalid("A page may be named once.", param)
    return numbers


def too_many_pages(num_pages: int, max_pages: int, param: str) -> TooLarge:
    """Tell a client how many pages it asked for, and how many it may."""
    return TooLarge(
        "pdf_too_many_pages",
        f"These are {num_pages} pages; of one document {max_pages} are taken. "
        "Name the ones that matter, such as 1-3,7.",
        param=param,
    )


def page_missing(num_pages: int, param: str) -> RequestInvalid:
    """Tell a client that it named a page beyond the last."""
    return _invalid(f"The document ends with page {num_pages}.", param)


def _ranges(text: str, param: str) -> list[PageRange]:
    if len(text) > _MAX_CHARS or not _RANGES.fullmatch(text):
        raise _invalid("Pages are named as in 1-3,7.", param)
    ranges: list[PageRange] = []
    for piece in text.split(","):
        first, _, last = piece.partition("-")
        ranges.append(PageRange(int(first), int(last or first)))
    if any(first < 1 or last < first for first, last in ranges):
        raise _invalid("Pages count from 1, and ranges run upwards.", param)
    return ranges


def _invalid(message: str, param: str) -> RequestInvalid:
    return RequestInvalid("pdf_pages_invalid", message, param=param)
