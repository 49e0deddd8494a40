"""uvicorn's HTTP/1.1 protocol with bounds on what comes before a body: its bytes and its time.

uvicorn waits for ever for the end of a request's head and takes one of any size. What it refuses
itself gets an answer in the shape of every other error here.
"""

import asyncio
from http import HTTPStatus
from typing import ClassVar

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_ANSWERS = {
    HTTPStatus.BAD_REQUEST: ("http_invalid", "This is not an HTTP/1.1 request."),
    HTTPStatus.REQUEST_TIMEOUT: ("head_timeout", "The request's head took too long to arrive."),
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: (
        "head_too_large",
        "The request's target and headers are too large or too many.",
    ),
}


class HttpProtocol(HttpToolsProtocol):
    """One connection.

    It is waited as long for a head that does not end as for one that does not begin.
    """

    max_head_bytes: ClassVar[int] = 64 * 1024
    max_headers: ClassVar[int] = 128
    head_seconds: ClassVar[float] = 15.0

    _status = HTTPStatus.BAD_REQUEST
    _wait: asyncio.TimerHandle | None = None  # for the end of a head
    _is_in_head = False
    _is_in_body = False
    _num_head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Start waiting for the first head."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._end_wait()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; a head that stays open has a limited size."""
        if self._is_in_head:
            self._num_head_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._is_in_head and self._num_head_bytes > self.max_head_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._wait is None and not (self._is_in_body or self._is_answering):
            self._wait_for_head()  # what came were line ends between requests

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
            raise ValueError("head too large")  # the parser stops; `send_400_response` answers
        self._is_in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Take the last byte of a body."""
        self._is_in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser could not use."""
        self._refuse(self._status)

    @property
    def _is_answering(self) -> bool:
        return bool(self.cycle) and not self.cycle.response_complete

    def _wait_for_head(self) -> None:
        self._wait = self.loop.call_later(self.head_seconds, self._give_up)

    def _end_wait(self) -> None:
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None

    def _give_up(self) -> None:
        if self._is_answering:  # the next request can wait for as long as this one's answer
            self._wait_for_head()
        elif self._is_in_head:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()

    def _refuse(self, status: HTTPStatus) -> None:
        if not self._is_answering:  # nothing may be written into another answer
            self.transport.write(_render(status))
        self.transport.close()


def _render(status: HTTPStatus) -> bytes:
    code, message = _ANSWERS[status]
    body = msgspec.json.encode(
        {"success": False, "message": message, "result": None, "usage": None, "code": code}
    )
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
