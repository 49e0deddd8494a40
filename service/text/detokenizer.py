"""From token ids back to text, as it grows: whole code points only, and stop strings.

Constant memory and time a token: at most three bytes and one stop string less a character wait.
"""

import codecs
from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import Tokenizer, decoders


class Vocabulary:
    """The bytes behind every token id; one for all requests of a worker."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Look tokens up in `tokenizer`.

        Raises:
            ValueError: not a byte-level tokenizer, which the whole Qwen family has.
        """
        if not isinstance(tokenizer.decoder, decoders.ByteLevel):
            message = "The checkpoint's tokenizer is not byte-level."
            raise ValueError(message)  # noqa: TRY004 - the checkpoint is wrong, not a type
        self._tokenizer = tokenizer
        self._spelled: dict[int, bytes] = {}
        self._shown: dict[int, bytes] = {
            token_id: b""
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        }

    def spell(self, token_id: int) -> bytes:
        """Spell a token, special ones too; an id without a token is empty."""
        spelling = self._spelled.get(token_id)
        if spelling is None:
            token = self._tokenizer.id_to_token(token_id)
            spelling = self._spelled[token_id] = b"" if token is None else _token_bytes(token)
        return spelling

    def show(self, token_ids: Sequence[int]) -> bytes:
        """Join what the tokens add to an answer: special ones add nothing."""
        shown = self._shown
        try:
            return b"".join([shown[token_id] for token_id in token_ids])
        except KeyError:
            for token_id in token_ids:
                shown.setdefault(token_id, self.spell(token_id))
            return b"".join([shown[token_id] for token_id in token_ids])

    def spell_all(self, token_ids: Sequence[int]) -> str:
        """Join the tokens' spelling, special ones too, into text."""
        return b"".join(map(self.spell, token_ids)).decode(errors="replace")


class Detokenizer:
    """One sequence's text: the pieces joined equal `Tokenizer.decode` of all its ids."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_ids: Sequence[int]) -> str:
        """Add tokens; give the text that is certain by now."""
        return self._decoder.decode(self._vocabulary.show(token_ids))

    def finish(self) -> str:
        """Give the rest: U+FFFD if the sequence ended within a code point."""
        return self._decoder.decode(b"", final=True)


class Stopped(NamedTuple):
    """Text that is certain, and the stop string behind it, if one was found."""

    text: str
    stop: str | None


class StopStrings:
    """Finds the first stop string to be completed in one sequence's text.

    The outcome is the same however the text is cut into pieces. Of two stop strings that end at
    the same character, the longer one counts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Watch for `stops`, none of them empty."""
        self._stops = sorted(stops, key=len, reverse=True)
        self._held = ""

    def feed(self, text: str) -> Stopped:
        """Add text; hold back what may yet become a stop string. Not to be called once stopped."""
        text = self._held + text
        self._held = ""
        first: tuple[int, str] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0 and (first is None or start + len(stop) < first[0]):
                first = (start + len(stop), stop)
        if first is not None:
            end, stop = first
            return Stopped(text[: end - len(stop)], stop)
        certain = self._certain_length(text)
        self._held = text[certain:]
        return Stopped(text[:certain], None)

    def finish(self) -> str:
        """Give what was held back: the sequence is over."""
        held, self._held = self._held, ""
        return held

    def _certain_length(self, text: str) -> int:
        """Measure the text before the longest end of it that begins a stop string."""
        certain = len(text)
        for stop in self._stops:
            start = text.find(stop[0], max(0, len(text) - len(stop) + 1), certain)
            while start >= 0 and not stop.startswith(text[start:]):
                start = text.find(stop[0], start + 1, certain)
            if start >= 0:
                certain = start
        return certain


def _byte_of_character() -> dict[str, int]:
    """Map the printable stand-ins of byte-level BPE to bytes; source: GPT-2's encoder."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {chr(byte): byte for byte in printable}
    return stand_ins | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()


def _token_bytes(token: str) -> bytes:
    """Translate a token as tokenizers' ByteLevel decoder does: all by stand-ins, or none."""
    try:
        return bytes([_BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:
        return token.encode()
