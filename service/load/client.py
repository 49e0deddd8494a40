"""The load generator: one process, one event loop, prepared requests, one connection per client.

An answer counts only when it is whole and right: every event well formed, the right number of
tokens, some text, every picture seen. Anything else is a failure with its reason.
"""

import asyncio
import random
import ssl
import time
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools
import msgspec

from service.load.dialects import DIALECTS, Dialect, Piece
from service.load.scenarios import Ask

_READ_BYTES = 256 * 1024
_OK = 200


class Target(NamedTuple):
    """A server that answers, as the client sees it.

    dialect: a name of DIALECTS. headers: for every request. any_length: answers may end before
    they have as many tokens as asked for.
    """

    name: str
    url: str
    dialect: str
    model: str
    headers: Mapping[str, str] = {}
    any_length: bool = False


class Prepared(NamedTuple):
    """A question as the bytes to send."""

    ask: Ask
    message: bytes


class Answer(msgspec.Struct):
    """One answer as the client saw it; times in seconds since the question was sent.

    fault: empty when the answer is right. event_times: of every event that brought text.
    """

    kind: str
    fault: str = ""
    text: str = ""
    num_tokens: int | None = None
    num_prompt_tokens: int | None = None
    seconds: float = 0.0
    event_times: list[float] = []


class Load(NamedTuple):
    """What one run of the load brought.

    seconds: from the first question to the last answer. cpu_seconds: the generator's own.
    """

    answers: list[Answer]
    seconds: float
    cpu_seconds: float


class ServerFailed(Exception):
    """The reply is no answer; the message says how."""


class _Reply:
    """httptools' callbacks: the pieces of one reply."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.is_complete = False
        self.keeps_alive = True
        self.parser = httptools.HttpResponseParser(self)

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)

    def on_message_complete(self) -> None:
        self.is_complete = True
        self.keeps_alive = self.parser.should_keep_alive()

    def take(self) -> bytes:
        taken = b"".join(self.pieces)
        self.pieces.clear()
        return taken


class Connection:
    """One client's connection to a server, opened anew when the server closed it."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._host = address.hostname or ""
        self._tls = ssl.create_default_context() if address.scheme == "https" else None
        self._port = address.port or (443 if self._tls else 80)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, message: bytes) -> AsyncGenerator[bytes, None]:
        """Send a request; give the body as it comes.

        Raises:
            ServerFailed: the status is not 200, or the reply is cut.
        """
        if self._streams is None:
            self._streams = await asyncio.open_connection(
                self._host, self._port, limit=_READ_BYTES, ssl=self._tls
            )
        streams, self._streams = self._streams, None  # kept only once the reply is complete
        reader, writer = streams
        reply = _Reply()
        try:
            writer.write(message)
            await writer.drain()
            while not reply.is_complete:
                received = await reader.read(_READ_BYTES)
                if not received:
                    raise ServerFailed("the connection was lost")
                reply.parser.feed_data(received)
                if reply.parser.get_status_code() == _OK and reply.pieces:
                    yield reply.take()
            if reply.keeps_alive:
                self._streams = streams
        finally:
            if self._streams is None:
                writer.close()
        if (status := reply.parser.get_status_code()) != _OK:
            raise ServerFailed(f"status {status}: {reply.take()[:200].decode(errors='replace')}")

    def close(self) -> None:
        """Close it, unless that was done."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def prepare(ask: Ask, target: Target) -> Prepared:
    """Write a question as an HTTP request."""
    if target.any_length:
        ask = ask._replace(any_length=True)
    dialect = DIALECTS[target.dialect]
    fields = dialect.write(ask, target.model)
    return Prepared(ask, post(target.url, dialect.path, fields, target.headers))


def post(
    url: str, path: str, fields: Mapping[str, object], headers: Mapping[str, str] | None = None
) -> bytes:
    """Write a POST of JSON."""
    body = msgspec.json.encode(fields)
    address = urlsplit(url)
    lines = [
        f"POST {address.path.rstrip('/')}{path} HTTP/1.1",
        f"host: {address.netloc}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def closed_loop(
    target: Target,
    questions: Sequence[Prepared],
    *,
    concurrency: int,
    seconds: float,
    patience: float,
) -> Load:
    """Keep so many questions open, ask new ones for so long, and wait for the last answers."""
    dialect = DIALECTS[target.dialect]
    waiting = deque(questions)
    started = time.perf_counter()
    cpu_started = time.process_time()

    async def client() -> list[Answer]:
        connection = Connection(target.url)
        answers: list[Answer] = []
        while waiting and (not answers or time.perf_counter() - started < seconds):
            answers.append(await put(connection, dialect, waiting.popleft(), patience))
        connection.close()
        return answers

    answers = await asyncio.gather(*(client() for _ in range(concurrency)))
    return Load(
        [answer for several in answers for answer in several],
        time.perf_counter() - started,
        time.process_time() - cpu_started,
    )


async def poisson(
    target: Target,
    questions: Sequence[Prepared],
    *,
    rate: float,
    seconds: float,
    patience: float,
) -> Load:
    """Ask at times of their own, so many a second on average, whatever is still open."""
    dialect = DIALECTS[target.dialect]
    generator = random.Random(0)  # noqa: S311 - the same arrivals every time
    started = time.perf_counter()
    cpu_started = time.process_time()

    async def client(question: Prepared, at: float) -> Answer:
        await asyncio.sleep(at)
        connection = Connection(target.url)
        answer = await put(connection, dialect, question, patience)
        connection.close()
        return answer

    clients: list[Coroutine[None, None, Answer]] = []
    at = 0.0
    for question in questions:
        at += generator.expovariate(rate)
        if at > seconds:
            break
        clients.append(client(question, at))
    answers = await asyncio.gather(*clients)
    return Load(list(answers), time.perf_counter() - started, time.process_time() - cpu_started)


async def put(
    connection: Connection, dialect: Dialect, question: Prepared, patience: float
) -> Answer:
    """Ask one question and judge the answer."""
    answer = Answer(kind=question.ask.kind)
    started = time.perf_counter()
    try:
        async with asyncio.timeout(patience):
            await _read_answer(connection, dialect, question, answer, started)
    except TimeoutError:
        answer.fault = "no end within the client's patience"
    except (ServerFailed, OSError, httptools.HttpParserError) as error:
        answer.fault = str(error) or type(error).__name__
    except (msgspec.DecodeError, LookupError, TypeError, AttributeError) as error:
        answer.fault = f"not the dialect: {type(error).__name__}"
    answer.seconds = time.perf_counter() - started
    answer.fault = answer.fault or _judge(answer, question.ask)
    return answer


async def _read_answer(
    connection: Connection, dialect: Dialect, question: Prepared, answer: Answer, started: float
) -> None:
    ended = False
    unread = b""
    texts: list[str] = []
    async with aclosing(connection.ask(question.message)) as bodies:
        async for body in bodies:
            unread += body
            if not dialect.streams:
                continue
            now = time.perf_counter() - started
            *events, unread = unread.replace(b"\r\n", b"\n").split(b"\n\n")
            for event in events:
                if not event.startswith(b"data:"):
                    continue  # a comment or a heartbeat
                piece = dialect.read(event[5:].strip())
                ended = _note(answer, texts, piece, now) or ended
    if not dialect.streams:
        ended = _note(answer, texts, dialect.read(unread), time.perf_counter() - started)
    answer.text = "".join(texts)
    if not ended:
        raise ServerFailed("the answer has no end")


def _note(answer: Answer, texts: list[str], piece: Piece, now: float) -> bool:
    if piece.text:
        texts.append(piece.text)
        answer.event_times.append(now)
    if piece.num_tokens is not None:
        answer.num_tokens = piece.num_tokens
    if piece.num_prompt_tokens is not None:
        answer.num_prompt_tokens = piece.num_prompt_tokens
    answer.fault = answer.fault or piece.fault
    return piece.is_last


def _judge(answer: Answer, ask: Ask) -> str:
    if not answer.text:
        return "no text"
    if answer.num_tokens is None or answer.num_prompt_tokens is None:
        return "tokens are not counted"
    is_short = answer.num_tokens < ask.max_tokens
    if answer.num_tokens > ask.max_tokens or (is_short and not ask.any_length):
        return f"{answer.num_tokens} tokens instead of {ask.max_tokens}"
    if answer.num_prompt_tokens < ask.least_prompt_tokens:
        return "not every picture was seen"
    return ""
