"""`loupe ask`: puts a question about pictures to a running server, and prints the answer."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

import msgspec

from service.client.address import address_of
from service.client.answer import AnswerPrinter
from service.client.attachment import Attachments, Part
from service.client.connection import Connection
from service.client.failure import ClientMistake, RequestFailed
from service.terminal import StatusLine, harmless, is_terminal

_REFUSED, _MISTAKEN, _INTERRUPTED = 1, 2, 130
_DEFAULT_QUESTION = "Describe this."
_COMPLETIONS = "/v1/chat/completions"
_MIB = 1024 * 1024


class AskOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What was typed; None leaves it to the server."""

    words: list[str]
    url: str | None = None
    api_key_file: str | None = None
    model: str | None = None
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    pages: str | None = None
    schema: str | None = None
    json: bool = False
    silence: float = 300.0


class ServedModel(msgspec.Struct, frozen=True):
    """A model of the server's list. owned_by: `loupe`, if that serves it."""

    id: str
    owned_by: str = ""


class _Models(msgspec.Struct, frozen=True):
    data: list[ServedModel]


class _StoredFile(msgspec.Struct, frozen=True):
    filename: str = ""


def ask(options: AskOptions) -> int:
    """Ask, and print; the exit status is 1 where the server refused, 2 for a mistake."""
    try:
        _ask(options)
    except ClientMistake as mistake:
        return _tell(mistake, _MISTAKEN)
    except RequestFailed as failure:
        return _tell(failure, _REFUSED)
    except KeyboardInterrupt:  # the connection is closed by now, which cancels the request
        return _INTERRUPTED
    except BrokenPipeError:  # whoever read the answer has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def served_model(connection: Connection) -> ServedModel:
    """Ask which model is served: the first of the list.

    Raises:
        RequestFailed: none is.
    """
    try:
        models = msgspec.json.decode(connection.get("/v1/models"), type=_Models).data
    except msgspec.DecodeError:
        models = []
    if not models:
        raise RequestFailed("what answers there tells of no model: is it Loupe?")
    return models[0]


def _ask(options: AskOptions) -> None:
    address = address_of(options.url, options.api_key_file, os.environ)
    status = StatusLine(sys.stderr)
    response_format = _response_format(options.schema)
    with Connection(address, options.silence) as connection:
        parts = _parts(options, connection)
        fields: dict[str, object] = {
            "model": options.model or served_model(connection).id,
            "messages": _messages(parts, options.system),
            "max_completion_tokens": options.max_tokens,
            "temperature": options.temperature,
            "seed": options.seed,
            "response_format": response_format,
        }
        if not options.json:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        given = {name: value for name, value in fields.items() if value is not None}
        progress = _Upload(status)
        try:
            lines = connection.post(_COMPLETIONS, msgspec.json.encode(given), progress.sent)
            if options.json:
                _print_json(lines, status)
            else:
                AnswerPrinter(sys.stdout, sys.stderr, status).print(lines)
        finally:
            status.clear()


def _parts(options: AskOptions, connection: Connection) -> list[Part]:
    def file_name(file_id: str) -> str:
        encoded = connection.get(f"/v1/files/{quote(file_id)}")
        return msgspec.json.decode(encoded, type=_StoredFile).filename

    attachments = Attachments(options.pages, sys.stdin.buffer, file_name)
    if options.words.count("-") > 1:
        raise ClientMistake("the standard input can be read once: give `-` once")
    parts = [attachments.part(word) for word in options.words]
    if options.pages is not None and not any(part["type"] == "file" for part in parts):
        raise ClientMistake("--pages is for PDFs, and there is none")
    if not any(part["type"] == "text" for part in parts):
        parts.append({"type": "text", "text": _DEFAULT_QUESTION})
    return parts


def _messages(parts: Sequence[Part], system: str | None) -> list[Part]:
    asked: Part = {"role": "user", "content": parts}
    return [asked] if system is None else [{"role": "system", "content": system}, asked]


def _response_format(schema: str | None) -> dict[str, object] | None:
    if schema is None:
        return None
    path = Path(schema)
    try:
        document = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except OSError as error:
        raise ClientMistake(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ClientMistake(f"{path} is no JSON schema: {error}") from error
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": document}}


def _print_json(lines: Iterator[bytes], status: StatusLine) -> None:
    reply = b"".join(lines)
    status.clear()
    sys.stdout.write(msgspec.json.format(reply).decode() + "\n")
    sys.stdout.flush()


class _Upload:
    """Shows how much of the question has gone out."""

    def __init__(self, status: StatusLine) -> None:
        self._status = status

    def sent(self, count: int, total: int) -> None:
        if count < total:
            if total > _MIB:
                self._status.show(f"sending {count / _MIB:.1f} of {total / _MIB:.1f} MiB")
        else:
            self._status.show("waiting for the answer …")


def _tell(error: Exception, status: int) -> int:
    text = str(error)
    end = "\n" if text.endswith((".", "?")) else ".\n"
    sys.stderr.write(_printable(f"loupe ask: {text}{end}", sys.stderr))
    return status


def _printable(text: str, stream: TextIO) -> str:
    return harmless(text) if is_terminal(stream) else text
