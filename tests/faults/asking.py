"""Clients that ask a service over HTTP, and may leave at any moment; what each of them saw.

Plain asyncio and httptools: a client must cost next to nothing beside the service.
"""

import asyncio
import base64
import contextlib
import io
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httptools
import msgspec
from PIL import Image, ImageDraw

GREEDY = {"temperature": 0.1, "top_k": 1, "repetition_penalty": 1.0, "seed": 1}
COLORS = {"red": "#ff0000", "blue": "#0000ff", "green": "#00ff00"}
PATHS = {"native": "/v1/chat", "stream": "/v1/chat/stream", "openai": "/v1/chat/completions"}
_READ_BYTES = 256 * 1024


class Question(NamedTuple):
    """What is asked. dialect: of PATHS. headers: beside the usual ones."""

    dialect: str
    body: dict[str, Any]
    headers: tuple[tuple[str, str], ...] = ()


class Outcome(msgspec.Struct):
    """What a client saw.

    status: 0 where no answer began. is_whole: the response came to its end. has_left: the client
    did not wait for that. seconds: from sending to the last byte. stream_id: of a stream that may
    be come back to.
    """

    request_id: str
    path: str
    status: int = 0
    is_whole: bool = False
    has_left: bool = False
    body: bytes = b""
    seconds: float = 0.0
    stream_id: str = ""

    @property
    def is_broken(self) -> bool:
        """The connection ended before the response did, and not by the client's will."""
        return not self.is_whole and not self.has_left

    def texts(self) -> list[str]:
        """The answers' texts, by index; an empty list for no answer."""
        if self.path == PATHS["native"] and self.status == 200:
            return [json.loads(self.body)["result"]]
        if self.path == PATHS["stream"] and self.status == 200:
            return ["".join(event.get("chunk", "") for event in self.events())]
        if self.status == 200 and self.body.startswith(b"{"):
            choices = sorted(json.loads(self.body)["choices"], key=lambda each: each["index"])
            return [choice["message"]["content"] for choice in choices]
        return _texts_of_chunks(self.events())

    def events(self) -> list[dict[str, Any]]:
        """The events of a stream."""
        lines = self.body.decode().split("\n")
        return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]

    def numbers(self) -> list[int]:
        """The ids of the events of a resumable stream."""
        return [int(number) for number in re.findall(rb"^id: \w+:(\d+)$", self.body, re.MULTILINE)]

    def code(self) -> str:
        """The error's code; empty where there was none."""
        if self.status == 200:
            codes = [event["code"] for event in self.events() if event.get("error")]
            return codes[0] if codes else ""
        with contextlib.suppress(json.JSONDecodeError):
            told = json.loads(self.body)
            return told.get("code") or told["error"]["code"]
        return "" if self.status == 0 else "not JSON"


def _texts_of_chunks(chunks: list[dict[str, Any]]) -> list[str]:
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.get("choices", []):
            delta = choice["delta"].get("content") or ""
            texts[choice["index"]] = texts.get(choice["index"], "") + delta
    return [texts[index] for index in sorted(texts)]


class _Reader:
    """httptools' callbacks for one response."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self.parser = httptools.HttpResponseParser(self)

    def on_headers_complete(self) -> None:
        self._outcome.status = self.parser.get_status_code()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-stream-id":
            self._outcome.stream_id = value.decode()

    def on_body(self, body: bytes) -> None:
        self._outcome.body += body

    def on_message_complete(self) -> None:
        self._outcome.is_whole = True


async def ask(
    url: str, question: Question, request_id: str, leave_after: float | None = None
) -> Outcome:
    """Ask on a connection of its own; leave_after: seconds, wherever that may be."""
    outcome = Outcome(request_id, PATHS[question.dialect])
    await _exchange(url, _question(url, question, outcome), outcome, leave_after)
    return outcome


async def come_back(url: str, outcome: Outcome, leave_after: float | None = None) -> None:
    """Get the rest of a resumable stream; an event of which a part had come is told again."""
    head, end, _ = outcome.body.rpartition(b"\n\n")
    outcome.body = head + end
    last = outcome.numbers()[-1:]
    headers = {"Host": urlsplit(url).netloc, "Connection": "close"}
    if last:
        headers["Last-Event-ID"] = f"{outcome.stream_id}:{last[0]}"
    rest = Outcome(outcome.request_id, outcome.path)
    message = _head("GET", f"/v1/streams/{outcome.stream_id}", headers)
    await _exchange(url, message, rest, leave_after)
    outcome.is_whole, outcome.has_left = rest.is_whole, rest.has_left
    if rest.status in (200, 204):
        outcome.body += rest.body
    elif rest.status:
        outcome.status, outcome.body = rest.status, rest.body


async def _exchange(url: str, message: bytes, outcome: Outcome, leave_after: float | None) -> None:
    began = time.perf_counter()
    try:
        async with asyncio.timeout(leave_after):
            await _converse(url, message, outcome)
    except TimeoutError:
        outcome.has_left = not outcome.is_whole
    except (OSError, httptools.HttpParserError):
        pass  # broken: the outcome says so
    outcome.seconds = time.perf_counter() - began


async def _converse(url: str, message: bytes, outcome: Outcome) -> None:
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(message)
        response = _Reader(outcome)
        while not outcome.is_whole and (received := await reader.read(_READ_BYTES)):
            response.parser.feed_data(received)
    finally:
        # A reset where something is unread, an end of file otherwise: as browsers leave.
        writer.transport.abort()


def _question(url: str, question: Question, outcome: Outcome) -> bytes:
    body = json.dumps(question.body).encode()
    headers = {
        "Host": urlsplit(url).netloc,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "X-Request-Id": outcome.request_id,
        "Connection": "close",
        **dict(question.headers),
    }
    return _head("POST", outcome.path, headers) + body


def _head(method: str, path: str, headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode()


async def ask_all(
    url: str, questions: Sequence[Question], prefix: str, *, concurrency: int | None = None
) -> list[Outcome]:
    """Ask them all at once, or so many at a time; request ids are the prefix and a number."""
    turns = asyncio.Semaphore(concurrency or len(questions))

    async def one(number: int, question: Question) -> Outcome:
        async with turns:
            return await ask(url, question, f"{prefix}-{number}")

    return await asyncio.gather(*(one(*pair) for pair in enumerate(questions)))


def picture(color: str = "red", shape: str = "circle", number: int = 0) -> bytes:
    """Draw a shape on white, as a PNG; the number makes it another picture that looks the same."""
    image = Image.new("RGB", (224, 224), "white")
    pen = ImageDraw.Draw(image)
    {"circle": pen.ellipse, "square": pen.rectangle}[shape]((45, 45, 179, 179), fill=COLORS[color])
    image.putpixel((number % 224, 0), (255, 255, 255 - number // 224 % 8 - 1))
    image.putpixel((number // 1792 % 224, 1), (255, 255, 254))
    encoded = io.BytesIO()
    image.save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()


def native(text: str, *pictures: bytes, stream: bool = False, **fields: object) -> Question:
    """A question in the native dialect, greedy unless the fields say otherwise."""
    body: dict[str, Any] = {"text": text, **GREEDY, **fields}
    if pictures:
        body["images"] = [base64.b64encode(each).decode() for each in pictures]
    else:
        body["input_type"] = "text_only"
    return Question("stream" if stream else "native", body)


def openai(text: str, *pictures: bytes, **fields: object) -> Question:
    """A question in OpenAI's dialect, greedy unless the fields say otherwise."""
    parts: list[dict[str, Any]] = [
        {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64," + base64.b64encode(each).decode()},
        }
        for each in pictures
    ]
    parts.append({"type": "text", "text": text})
    messages = [{"role": "user", "content": parts}]
    return Question("openai", {"model": "demo", "messages": messages, "temperature": 0, **fields})


def run_with(
    url: str,
    questions: Sequence[Question],
    prefix: str,
    disturb: Callable[[], None],
    *,
    after: float = 0.0,
    concurrency: int | None = None,
) -> list[Outcome]:
    """Ask as ask_all does, and disturb from another thread so many seconds later."""

    async def run() -> list[Outcome]:
        asked = asyncio.ensure_future(ask_all(url, questions, prefix, concurrency=concurrency))
        await asyncio.sleep(after)
        await asyncio.to_thread(disturb)
        return await asked

    return asyncio.run(run())
