"""uvicorn's HTTP/1.1 protocol with bounds on what one connection may hold, in bytes and in time.

uvicorn waits for ever for the end of a head, of a body, and for a client that does not read; it
takes a head of any size and connections of any number. What is refused here, before there is a
request, gets an answer in the shapes of the native API's errors and of OpenAI's at once: nobody
knows yet which the client reads.
"""

import asyncio
import socket
import struct
from http import HTTPStatus
from typing import ClassVar, cast

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import BodyTimeout, Overloaded, ServiceError
from service.http.body_clock import BodyClock
from service.http.connection_limits import ConnectionLimits
from service.http.http_refusal import refuse
from service.metrics.worker_metrics import WorkerMetrics

# Small, so that a reader who has stopped is soon noticed and costs little until then, here and in
# the kernel beside it.
_MAX_UNSENT_BYTES = 16 * 1024
# A client that takes less than this of what waits, in the time it has, reads too slowly.
_MIN_TAKEN_BYTES = 16 * 1024
# What one connection may hand the event loop in a turn. Copies so small come from memory at hand.
_PIECE_BYTES = 64 * 1024
_RETRY_SECONDS = 1.0
# For the loop to read what has come before time is called.
_READ_SECONDS = 0.05
# A peer that vanished without a word is noticed after about 90 s, though nothing is sent to it.
_PROBE_OPTIONS = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}

_UPGRADE_HEADERS = (b"upgrade", b"http2-settings")

logger = structlog.get_logger()


class HttpProtocol(HttpToolsProtocol):
    """One connection.

    It is waited as long for a head that does not end as for one that does not begin.
    """

    max_head_bytes: ClassVar[int] = 64 * 1024
    max_headers: ClassVar[int] = 128
    head_seconds: ClassVar[float] = 15.0
    limits: ClassVar[ConnectionLimits] = ConnectionLimits()
    metrics: ClassVar[WorkerMetrics | None] = None
    # Where one event loop's connections read into: what is read is parsed before anything else is.
    piece: ClassVar[memoryview] = memoryview(bytearray(_PIECE_BYTES))

    _status = HTTPStatus.BAD_REQUEST
    _wait: asyncio.TimerHandle | None = None  # for the end of a head
    _is_in_head = False
    _is_in_body = False
    _is_deaf = False
    _num_head_bytes = 0
    _clock: BodyClock | None = None
    _body_wait: asyncio.TimerHandle | None = None
    _reader_wait: asyncio.TimerHandle | None = None
    _num_unsent_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Start waiting for the first head, if there is room for one more connection."""
        super().connection_made(transport)
        transport.set_protocol(_Reader(self))
        transport.set_write_buffer_limits(high=_MAX_UNSENT_BYTES)
        _bound_in_the_kernel(transport.get_extra_info("socket"), self.limits)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._end_wait()
        self._end_clock()
        self._end_reader_wait()
        super().connection_lost(exc)

    def data_received(self, data: bytes | memoryview) -> None:
        """Parse what came; a head that stays open has a limited size, a body a limited time."""
        if self.transport.is_closing():
            return
        if self._is_in_head:
            self._num_head_bytes += len(data)
        if not self._is_deaf:
            self._parse(data)
        if self._is_deaf or self.transport.is_closing():
            return
        if self._is_in_head and self._num_head_bytes > self.max_head_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._is_in_body:
            if self._clock is None:
                self._start_clock()
            if self.cycle.body and not self.cycle.response_complete:
                self.flow.pause_reading()  # until the request has taken this
        elif self._wait is None and not (self._is_in_body or self._is_answering):
            self._wait_for_head()  # what came were line ends between requests

    def _parse(self, data: bytes | memoryview) -> None:
        self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserError as error:
                if isinstance(error.__context__, MemoryError):
                    self._take_no_more()
                else:
                    self._refuse(self._status)
            except httptools.HttpParserUpgrade as upgrade:
                # There is nothing to upgrade to. The parser has taken the head for the end of the
                # request; read again without the wish, it is followed by its body.
                (num_parsed,) = upgrade.args
                head = _without_upgrade(self.parser.get_method(), self.url, self.headers)
                self.parser = httptools.HttpRequestParser(self)
                data = head + data[num_parsed:]
                continue
            return

    def on_message_begin(self) -> None:
        """Take the first byte of a head."""
        super().on_message_begin()
        self._is_in_head = True
        self._num_head_bytes = 0
        if self._wait is None:
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        """Hand the request on, or refuse a head that came whole but is too large."""
        self._end_wait()
        self._is_in_head = False
        num_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if num_bytes > self.max_head_bytes or len(self.headers) > self.max_headers:
            self._status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise ValueError("head too large")  # the parser stops; `_parse` answers
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("no proxy")
            return  # `_parse` begins the request again
        self._is_in_body = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        if self._clock is not None:
            self._clock.count(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the last byte of a body."""
        if self.parser.should_upgrade():
            return
        self._is_in_body = False
        self._end_clock()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request, or see that the last bytes leave."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_reader()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, and see that the last bytes leave."""
        super().timeout_keep_alive_handler()
        self._watch_reader()

    def pause_writing(self) -> None:
        """Note that the client does not read as fast as is written."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """Note that it has caught up."""
        self._end_reader_wait()
        super().resume_writing()

    @property
    def _is_answering(self) -> bool:
        return bool(self.cycle) and not self.cycle.response_complete

    @property
    def _may_answer(self) -> bool:
        """Nothing may be written into the answer to another request."""
        if self._is_in_body:
            return not (self.pipeline or self.cycle.response_started)
        return not self._is_answering

    def _wait_for_head(self) -> None:
        self._wait = self.loop.call_later(self.head_seconds, self._read_first)

    def _end_wait(self) -> None:
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None

    def _read_first(self) -> None:
        # After a loop that stood still, timers come before what is there to read.
        self._wait = self.loop.call_later(_READ_SECONDS, self._give_up)

    def _give_up(self) -> None:
        if self._is_answering:  # the next request can wait for as long as this one's answer
            self._wait_for_head()
        elif self._is_in_head:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()

    def _start_clock(self) -> None:
        # Only for bodies that do not come with their head: most do, and need no clock.
        self._clock = BodyClock(self.limits, self.loop.time())
        self.scope.setdefault("state", {})[BodyClock.STATE_KEY] = self._clock
        self._body_wait = self.loop.call_at(self._clock.ends_at(), self._look_at_clock)

    def _end_clock(self) -> None:
        self._clock = None
        if self._body_wait is not None:
            self._body_wait.cancel()
            self._body_wait = None

    def _look_at_clock(self) -> None:
        if self._clock is None:
            return
        now = self.loop.time()
        if self.flow.read_paused:
            self._clock.restart(now)  # it is not the client who is slow
        if self._clock.ends_at() <= now:
            if not self._is_answering or self._clock.fault is not None:
                self.transport.close()  # nobody reads this body, whatever its end may be
                return
            self._end_body(self._clock, BodyTimeout())
            self._clock.restart(now)
        self._body_wait = self.loop.call_at(self._clock.ends_at(), self._look_at_clock)

    def _end_body(self, clock: BodyClock, fault: ServiceError) -> None:
        clock.fault = fault
        self.cycle.message_event.set()  # wakes the request's `receive`

    def _take_no_more(self) -> None:
        """Let a request be refused for whose next part there was no memory."""
        self._is_deaf = True  # the parser has lost its place, too
        if not self._is_in_body or not self._is_answering:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        if self._clock is None:
            self._start_clock()
        self.cycle.keep_alive = False
        self._end_body(cast("BodyClock", self._clock), Overloaded(_RETRY_SECONDS))

    def _watch_reader(self) -> None:
        if self._reader_wait is None:
            self._num_unsent_bytes = self.transport.get_write_buffer_size()
            self._reader_wait = self.loop.call_later(
                self.limits.write_timeout_seconds, self._look_at_reader
            )

    def _end_reader_wait(self) -> None:
        if self._reader_wait is not None:
            self._reader_wait.cancel()
            self._reader_wait = None

    def _look_at_reader(self) -> None:
        self._reader_wait = None
        num_unsent_bytes = self.transport.get_write_buffer_size()
        if self._num_unsent_bytes - num_unsent_bytes < min(_MIN_TAKEN_BYTES, num_unsent_bytes):
            logger.info("slow_reader_cut", unsent_bytes=num_unsent_bytes)
            self._reset()
        elif num_unsent_bytes:
            self._watch_reader()

    def _reset(self) -> None:
        # Without this the kernel would go on sending what it holds, for as long as it takes.
        connection: socket.socket = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _refuse(self, status: HTTPStatus) -> None:
        if self._may_answer:
            refusal = refuse(status)
            logger.info(
                "connection_refused",
                request_id=refusal.request_id,
                status_code=status.value,
                error_code=refusal.code,
                client_host=self.client[0] if self.client else None,
            )
            if self.metrics is not None:
                self.metrics.response("other", status, "")
                self.metrics.refused(refusal.code)
            self.transport.write(refusal.answer)
        self.transport.close()


class _Reader(asyncio.BufferedProtocol):
    """Reads for a connection, piece by piece."""

    def __init__(self, connection: HttpProtocol) -> None:
        self._connection = connection
        self.connection_lost = connection.connection_lost
        self.eof_received = connection.eof_received
        self.pause_writing = connection.pause_writing
        self.resume_writing = connection.resume_writing

    def get_buffer(self, sizehint: int) -> memoryview:
        """Tell where to read into."""
        return self._connection.piece

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on what was read."""
        self._connection.data_received(self._connection.piece[:nbytes])


def protocol_with(
    limits: ConnectionLimits, metrics: WorkerMetrics | None = None
) -> type[HttpProtocol]:
    """Make the protocol of a server whose operator chose these limits.

    metrics: counts what is refused before there is a request.
    """
    piece = memoryview(bytearray(_PIECE_BYTES))
    own = {"limits": limits, "metrics": metrics, "piece": piece}
    return type("HttpProtocol", (HttpProtocol,), own)


def _bound_in_the_kernel(connection: socket.socket, limits: ConnectionLimits) -> None:
    """Let the kernel hold little, and give up a peer that neither answers nor takes anything."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    milliseconds = int(limits.write_timeout_seconds * 1000)
    bounds = {"TCP_NOTSENT_LOWAT": _MAX_UNSENT_BYTES, "TCP_USER_TIMEOUT": milliseconds}
    for name, value in (_PROBE_OPTIONS | bounds).items():
        if hasattr(socket, name):  # not every system has each
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _without_upgrade(method: bytes, url: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (method, url)]
    for name, value in headers:
        if name == b"connection":
            words = [word.strip() for word in value.split(b",")]
            kept = [word for word in words if word.lower() not in _UPGRADE_HEADERS]
            lines.append(b"connection: " + b", ".join(kept))
        elif name not in _UPGRADE_HEADERS:
            lines.append(b"%s: %s" % (name, value))
    return b"\r\n".join(lines) + b"\r\n\r\n"
