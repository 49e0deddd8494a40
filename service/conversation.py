"""The one canonical request every dialect becomes; by any road, the same request is equal here."""

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import msgspec

from inference.protocol import SamplingParams
from service.text.output_format import OutputFormat

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
MediaKind: TypeAlias = Literal["image", "document", "video"]
ALL_KINDS: tuple[MediaKind, ...] = ("image", "document", "video")
Detail: TypeAlias = Literal["auto", "low", "high", "original"]


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    """A piece of text, never interpreted as template or special tokens."""

    text: str


class Bytes(msgspec.Struct, frozen=True, tag="bytes"):
    """A file that came whole, as a form brings it."""

    content: bytes


class Inline(msgspec.Struct, frozen=True, tag="inline"):
    """A file within a JSON text: base64 or a `data:` URL, not yet decoded."""

    text: str


class Remote(msgspec.Struct, frozen=True, tag="remote"):
    """A file at an http or https URL, not yet fetched or even checked."""

    url: str


class Stored(msgspec.Struct, frozen=True, tag="stored"):
    """A file that was uploaded before."""

    file_id: str


Source: TypeAlias = Bytes | Inline | Remote | Stored


class MediaPart(msgspec.Struct, frozen=True, kw_only=True, tag="media"):
    """Something to look at, as the client gave it: where its bytes are, and nothing of them.

    param: the request field it came from, so that a refusal can name it.
    kinds: what that field takes.
    detail: `low` asks for fewer pixels; the others for as many as the server allows.
    min_pixels, max_pixels: the client's own bounds on the area after resizing, within the server's.
    pages: of a document, such as `1-3,7`; None is all.
    """

    source: Source
    param: str
    kinds: tuple[MediaKind, ...] = ("image",)
    detail: Detail = "auto"
    min_pixels: int | None = None
    max_pixels: int | None = None
    pages: str | None = None


Part: TypeAlias = TextPart | MediaPart


class ToolCall(msgspec.Struct, frozen=True):
    """A function that an earlier answer called. arguments: JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True):
    """One turn: its parts stay in the order the client gave them.

    reasoning, tool_calls: of an assistant's turn. tool_call_id: which call a tool's turn answers.
    """

    role: Role
    parts: tuple[Part, ...]
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """What to answer and how.

    stop: strings that end the answer; they are not part of it.
    num_answers: independent answers (`n`).
    tools: function schemas, in the form the chat template takes.
    output: what form the answers must have; it becomes the grammar of `sampling`.
    """

    messages: tuple[Message, ...]
    sampling: SamplingParams
    stop: tuple[str, ...] = ()
    num_answers: int = 1
    tools: tuple[dict[str, Any], ...] = ()
    output: OutputFormat = OutputFormat()

    @property
    def media(self) -> list[MediaPart]:
        """Everything to look at, in prompt order."""
        return list(media_of(self.messages))


def media_of(messages: tuple[Message, ...]) -> Iterator[MediaPart]:
    """Give everything to look at, in prompt order."""
    for message in messages:
        for part in message.parts:
            if isinstance(part, MediaPart):
                yield part
