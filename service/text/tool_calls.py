"""Function calls in the model's text, as Qwen and Hermes write them.

    <tool_call>
    {"name": "...", "arguments": {...}}
    </tool_call>

Knows the functions' names, not their schemas, and no dialect.
"""

import re
import secrets
from collections.abc import Collection
from enum import Enum, auto
from typing import TypeAlias

import msgspec

from service.text.tags import cut_at

OPENING = "<tool_call>"
CLOSING = "</tool_call>"

# A call with its keys in the usual order is told as it comes; any other when it is complete.
_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
_MAX_HEAD_CHARACTERS = 512
_MAX_SPACE_CHARACTERS = 64
_MARK_OUTSIDE_STRINGS = re.compile(r'["{}\[\]<]')
_MARK_IN_STRINGS = re.compile(r'["\\]')


class ContentText(msgspec.Struct, frozen=True):
    """Text that is no call; never empty."""

    text: str


class CallStarted(msgspec.Struct, frozen=True):
    """The model calls a function there is. index: 0, 1, ... within the answer."""

    index: int
    id: str
    name: str


class CallArguments(msgspec.Struct, frozen=True):
    """More of a call's arguments: the model's own JSON text, character for character."""

    index: int
    text: str


Event: TypeAlias = ContentText | CallStarted | CallArguments


class _Place(Enum):
    CONTENT = auto()
    OPENED = auto()  # behind the opening tag: whitespace
    CALL = auto()  # in the call's object: no name yet
    ARGUMENTS = auto()
    END = auto()  # behind the arguments: the object's brace
    TAG = auto()  # behind the object: the closing tag


class ToolCallSplitter:
    """Parts one answer's text into calls and content; the outcome is the same however it is cut.

    For every answer one splitter: `feed` its texts in order (of a thinking model those behind the
    reasoning), then `finish`. A call starts once its name is certain. Its arguments follow as they
    arrive, valid or not, as clients of OpenAI's API are told to expect. What starts no call (not
    JSON, no such function) is content, tags and all. Whitespace is left out before a call, and
    behind one where no content follows or none came before.
    """

    def __init__(self, names: Collection[str]) -> None:
        """Take calls of the functions named; with none of them, all text is content."""
        self._names = frozenset(names)
        self._place = _Place.CONTENT
        self._held = ""  # a part of a tag, or what stands between the opening tag and the object
        self._space: str = ""  # at the end of the content: dropped if a call follows
        self._is_behind_call = False  # nothing but whitespace since
        self._has_content = False
        self._object: list[str] = []
        self._num_characters = 0
        self._json = _Nesting()
        self._events: list[Event] = []
        self.num_calls = 0

    def feed(self, text: str) -> list[Event]:
        """Add text; give what is certain of it."""
        if not self._names:
            return [ContentText(text)] if text else []
        while text:
            text = self._step(text)
        return self._take_events()

    def finish(self) -> list[Event]:
        """Give what was held back: the answer is over. A call that has started stays as it is."""
        if self._place is _Place.CONTENT:
            self._say(self._held)
        elif self._place in (_Place.OPENED, _Place.CALL):
            self._say(OPENING + self._held + "".join(self._object))
        if self._space and not self._is_behind_call:
            self._events.append(ContentText(self._space))
        return self._take_events()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _step(self, text: str) -> str:
        """Take text up to where the place changes; give the rest."""
        match self._place:
            case _Place.CONTENT:
                return self._find_opening(text)
            case _Place.OPENED:
                return self._find_object(text)
            case _Place.CALL:
                return self._read_call(text)
            case _Place.ARGUMENTS:
                return self._read_arguments(text)
            case _Place.END:
                text = text.lstrip()
                self._place = _Place.TAG if text else _Place.END
                return text.removeprefix("}")
            case _Place.TAG:
                return self._skip_closing(text)

    def _find_opening(self, text: str) -> str:
        content, is_found, rest = cut_at(OPENING, self._held + text)
        self._say(content)
        if is_found:
            self._place, self._held = _Place.OPENED, ""
            return rest
        self._held = rest
        return ""

    def _find_object(self, text: str) -> str:
        rest = text.lstrip()
        self._held += text[: len(text) - len(rest)]
        if rest and rest[0] != "{":
            self._give_back(self._held)
        elif rest:
            self._place = _Place.CALL
            self._num_characters, self._json = 0, _Nesting()
        return rest

    def _read_call(self, text: str) -> str:
        if self._num_characters < _MAX_HEAD_CHARACTERS:
            begin = "".join(self._object) + text
            head = _HEAD.match(begin, 0, _MAX_HEAD_CHARACTERS)
            if head and (name := _decoded_name(head[1])) in self._names:
                self._start(name)
                self._place, self._json = _Place.ARGUMENTS, _Nesting()
                return begin[head.end() :]
        end = self._json.feed(text)
        self._object.append(text[:end])
        self._num_characters += len(text)
        if end is not None:
            self._take_object("".join(self._object))
        return "" if end is None else text[end:]

    def _take_object(self, text: str) -> None:
        """Read a whole object that did not start a call as it came."""
        call = None if self._json.is_broken else _decoded_call(text)
        if call is None or call.name not in self._names:
            self._give_back(self._held + text)
            return
        index = self._start(call.name)
        self._events.append(CallArguments(index, bytes(call.arguments).decode()))
        self._place = _Place.TAG

    def _start(self, name: str) -> int:
        index = self.num_calls
        self._events.append(CallStarted(index, f"call_{secrets.token_hex(12)}", name))
        self.num_calls += 1
        self._held = self._space = ""
        self._object = []
        self._is_behind_call = True
        return index

    def _read_arguments(self, text: str) -> str:
        end = self._json.feed(text)
        if text[:end]:
            self._events.append(CallArguments(self.num_calls - 1, text[:end]))
        if end is None:
            return ""
        self._place = _Place.TAG if self._json.is_broken else _Place.END
        return text[end:]

    def _skip_closing(self, text: str) -> str:
        text, self._held = (self._held + text).lstrip(), ""
        if len(text) < len(CLOSING) and CLOSING.startswith(text):
            self._held = text
            return ""
        self._place = _Place.CONTENT
        return text.removeprefix(CLOSING)

    def _give_back(self, text: str) -> None:
        self._held = ""
        self._object = []
        self._place = _Place.CONTENT
        self._say(OPENING + text)

    def _say(self, text: str) -> None:
        text = self._space + text
        if self._is_behind_call:
            words = text.lstrip()
            self._space = text[: len(text) - len(words)][-_MAX_SPACE_CHARACTERS:]
            if not words:
                return
            text = self._space + words if self._has_content else words
            self._is_behind_call = False
        certain = max(len(text.rstrip()), len(text) - _MAX_SPACE_CHARACTERS)
        self._space = text[certain:]
        if certain:
            self._has_content = True
            self._events.append(ContentText(text[:certain]))


class _Nesting:
    """Finds the end of a JSON object that grows, with no more than its brackets and strings."""

    def __init__(self) -> None:
        self.is_broken = False
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False

    def feed(self, text: str) -> int | None:
        """Add text; give where in it the object ends, closed or broken, once it does.

        `<` breaks it: outside strings it is never JSON, and may well begin a tag.
        """
        place = 0
        while place < len(text):
            if self._is_escaped:
                self._is_escaped = False
                place += 1
                continue
            marks = _MARK_IN_STRINGS if self._is_in_string else _MARK_OUTSIDE_STRINGS
            mark = marks.search(text, place)
            if mark is None:
                return None
            place = mark.end()
            if self._ends_with(mark[0]):
                return mark.start() if self.is_broken else place
        return None

    def _ends_with(self, mark: str) -> bool:
        match mark:
            case '"':
                self._is_in_string = not self._is_in_string
            case "\\":
                self._is_escaped = True
            case "<":
                self.is_broken = True
            case "{" | "[":
                self._depth += 1
            case _:
                self._depth -= 1
        return self.is_broken or (not self._is_in_string and self._depth == 0)


class _Call(msgspec.Struct):
    name: str
    arguments: msgspec.Raw


def _decoded_name(text: str) -> str:
    try:
        return msgspec.json.decode(text, type=str)
    except msgspec.DecodeError:
        return ""


def _decoded_call(text: str) -> _Call | None:
    try:
        call = msgspec.json.decode(text, type=_Call)
    except (msgspec.DecodeError, RecursionError):
        return None
    return call if bytes(call.arguments).startswith(b"{") else None
