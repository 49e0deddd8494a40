"""The one canonical request every dialect becomes; by any road, the same request is equal here."""

from typing import Literal, TypeAlias

import msgspec

from inference.protocol import SamplingParams

Role: TypeAlias = Literal["system", "user", "assistant"]


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    """A piece of text, never interpreted as template or special tokens."""

    text: str


class ImagePart(msgspec.Struct, frozen=True, tag="image"):
    """A picture as the client sent it: the encoded file's bytes, not yet looked at.

    param: the request field it came from, so that a refusal can name it.
    """

    encoded: bytes
    param: str


Part: TypeAlias = TextPart | ImagePart


class Message(msgspec.Struct, frozen=True):
    """One turn: its parts stay in the order the client gave them."""

    role: Role
    parts: tuple[Part, ...]


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """What to answer and how.

    stop: strings that end the answer; they are not part of it.
    num_answers: independent answers (`n`).
    """

    messages: tuple[Message, ...]
    sampling: SamplingParams
    stop: tuple[str, ...] = ()
    num_answers: int = 1

    @property
    def images(self) -> list[ImagePart]:
        """Every picture, in prompt order."""
        return [
            part
            for message in self.messages
            for part in message.parts
            if isinstance(part, ImagePart)
        ]
