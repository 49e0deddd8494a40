"""Where a tag stands in text that grows."""

from typing import NamedTuple


class Cut(NamedTuple):
    """Text parted at a tag.

    rest: what follows the tag; where none was found, the end of the text that may begin one, to be
    looked at again with what comes next.
    """

    before: str
    is_found: bool
    rest: str


def cut_at(tag: str, text: str) -> Cut:
    """Part text at the first place where the tag stands, or may stand once the text goes on."""
    before, found, rest = text.partition(tag)
    if found:
        return Cut(before, True, rest)
    longest = min(len(text), len(tag) - 1)
    length = next((n for n in range(longest, 0, -1) if text.endswith(tag[:n])), 0)
    return Cut(text[: len(text) - length], False, text[len(text) - length :])
