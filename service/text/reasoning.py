"""A thinking model's text, parted into what it reasons and what it answers.

Qwen3-VL's Thinking models write `reasoning </think> answer`: their chat template has opened the
reasoning in the prompt. Instruct models never open one. Knows no dialect and no tokens.
"""

from enum import Enum, auto
from typing import NamedTuple

from service.text.tags import cut_at

OPENING = "<think>"
CLOSING = "</think>"


class Piece(NamedTuple):
    """Some text, never empty, of the reasoning or of the answer."""

    text: str
    is_reasoning: bool


class _Place(Enum):
    START = auto()  # no more than whitespace and a part of the opening tag yet
    REASONING = auto()
    ANSWER = auto()


def opens_reasoning(prompt_end: str) -> bool:
    """Tell whether the answer to a prompt starts inside its reasoning.

    prompt_end: the rendered prompt's text behind its last special token, in which nothing is a
        client's: `ChatTemplate.render(...)[-1]`. A thinking model's ends with `<think>` and a
        newline; where it is told not to think, the reasoning is closed there, too.
    """
    return prompt_end.rstrip().endswith(OPENING)


class ReasoningSplitter:
    """Parts one answer's text as it grows; the outcome is the same however the text is cut.

    For every answer one splitter: `feed` its texts in order, then `finish`; the pieces of a part,
    joined, are its text. The tags and the newlines around them belong to neither part. An answer
    that was cut before the closing tag is all reasoning.
    """

    def __init__(self, starts_inside: bool) -> None:
        """Expect reasoning at once, or, unless starts_inside, behind an opening tag alone."""
        self._starts_inside = starts_inside
        self._place = _Place.START
        self._drops_newlines = starts_inside  # up to the part's first other character
        self._held = ""  # what may begin a tag
        self._newlines = ""  # at the end of the reasoning: dropped if the closing tag follows

    def feed(self, text: str) -> list[Piece]:
        """Add text; give what is certain of it."""
        text, self._held = self._held + text, ""
        if self._place is _Place.START:
            text = self._start(text)
        if self._place is _Place.REASONING:
            return self._reason(text)
        return self._say(text)

    def finish(self) -> list[Piece]:
        """Give what was held back: the answer is over."""
        text, self._held = self._held, ""
        if self._is_reasoning:
            text = text.rstrip("\n")
            text = self._newlines + text if text else ""
        return self._say(text)

    @property
    def _is_reasoning(self) -> bool:
        if self._place is _Place.START:
            return self._starts_inside
        return self._place is _Place.REASONING

    def _start(self, text: str) -> str:
        """Find out what the answer begins with; give the text behind the opening tag."""
        begin = text.lstrip()
        if len(begin) < len(OPENING) and OPENING.startswith(begin):
            self._held = text
            return ""
        if begin.startswith(OPENING):
            self._place = _Place.REASONING
            self._drops_newlines = True
            return begin.removeprefix(OPENING)
        self._place = _Place.REASONING if self._starts_inside else _Place.ANSWER
        return text

    def _reason(self, text: str) -> list[Piece]:
        reasoning, is_found, rest = cut_at(CLOSING, text)
        words = reasoning.rstrip("\n")
        pieces = self._say(self._newlines + words) if words else []
        self._newlines = reasoning[len(words) :] if words else self._newlines + reasoning
        if not is_found:
            self._held = rest
            return pieces
        self._place = _Place.ANSWER
        self._drops_newlines = True
        return pieces + self._say(rest)

    def _say(self, text: str) -> list[Piece]:
        if self._drops_newlines:
            text = text.lstrip("\n")
            self._drops_newlines = not text
        return [Piece(text, self._is_reasoning)] if text else []
