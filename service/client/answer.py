"""Reads an answer's events and prints it as it comes; figures go to a terminal alone."""

import time
from collections.abc import Iterator
from typing import TextIO

import msgspec

from service.client.connection import error_text
from service.client.failure import RequestFailed
from service.terminal import StatusLine, harmless, is_terminal

_DATA = b"data:"
_DONE = b"[DONE]"
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct, frozen=True):
    image_tokens: int = 0
    cached_tokens: int = 0


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: _Usage | None = None


class AnswerPrinter:
    """Prints one answer: its text to `output`, thoughts and figures to `notes`, if a terminal."""

    def __init__(self, output: TextIO, notes: TextIO, status: StatusLine) -> None:
        self._output = output
        self._notes = notes if is_terminal(notes) else None
        self._status = status
        self._is_seen = is_terminal(output)
        self._started = time.monotonic()
        self._first_at: float | None = None
        self._finish: str | None = None
        self._usage: _Usage | None = None
        self._at_line_start = True

    def print(self, lines: Iterator[bytes]) -> None:
        """Print until the answer's end.

        Raises:
            RequestFailed: the server ended it with an error, or without an end.
        """
        try:
            if not self._read(lines):
                raise RequestFailed("the answer broke off")
        finally:
            self._status.clear()
            if not self._at_line_start:
                self._write("\n")
        self._tell_figures()

    def _read(self, lines: Iterator[bytes]) -> bool:
        for line in lines:
            if not line.startswith(_DATA):
                continue  # a comment, or the empty line behind an event
            event = line[len(_DATA) :].strip()
            if event == _DONE:
                return True
            if message := error_text(event):
                raise RequestFailed(message)
            try:
                self._show(msgspec.json.decode(event, type=_Chunk))
            except msgspec.DecodeError as error:
                raise RequestFailed("the reply is no answer: is it Loupe?") from error
        return False

    def _show(self, chunk: _Chunk) -> None:
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices:
            self._finish = choice.finish_reason or self._finish
            if choice.delta.reasoning_content and self._notes is not None:
                self._note_first()
                self._notes.write(f"{_DIM}{harmless(choice.delta.reasoning_content)}{_PLAIN}")
                self._notes.flush()
            if choice.delta.content:
                self._note_first()
                self._write(choice.delta.content)

    def _note_first(self) -> None:
        if self._first_at is None:
            self._first_at = time.monotonic()
            self._status.clear()

    def _write(self, text: str) -> None:
        self._at_line_start = text.endswith("\n")  # first: an interrupt may come in between
        self._output.write(harmless(text) if self._is_seen else text)
        self._output.flush()

    def _tell_figures(self) -> None:
        if self._notes is None or self._usage is None:
            return
        now = time.monotonic()
        first_at = now if self._first_at is None else self._first_at
        usage, details = self._usage, self._usage.prompt_tokens_details or _PromptDetails()
        pictures = f", {details.image_tokens} of them of pictures" if details.image_tokens else ""
        figures = (
            f"{usage.prompt_tokens} tokens in{pictures}; {usage.completion_tokens} out;"
            f" first after {first_at - self._started:.2f} s,"
            f" all after {now - self._started:.2f} s"
        )
        if self._finish == "length":
            figures += "; cut at the token limit (--max-tokens)"
        self._notes.write(f"{_DIM}[{figures}]{_PLAIN}\n")
        self._notes.flush()
