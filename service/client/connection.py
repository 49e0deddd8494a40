"""One HTTP connection to the server: requests out, replies in, failures in words."""

import contextlib
import http.client
import socket
import ssl
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self, cast
from urllib.parse import urlsplit

import msgspec

from service.client.address import Address
from service.client.failure import RequestFailed

_OK = 200
_CHUNK_BYTES = 64 * 1024
_CONNECT_SECONDS = 10.0
_MAX_ERROR_BYTES = 64 * 1024
_MAX_LINE_BYTES = 16 * 1024 * 1024

Sent = Callable[[int, int], None]


class _Error(msgspec.Struct, frozen=True):
    """The server's words on what is wrong."""

    message: str = ""
    code: str | int | None = None
    param: str | None = None


class _Refusal(msgspec.Struct, frozen=True):
    """A body that is not an answer."""

    error: _Error


class Connection:
    """A connection that is opened by its first request, and closed by the `with` it is used in.

    silence_seconds: how long the server may say nothing.
    """

    def __init__(self, address: Address, silence_seconds: float) -> None:
        self._address = address
        self._silence_seconds = silence_seconds
        parts = urlsplit(address.url)
        self._host = parts.hostname or ""
        self._prefix = parts.path
        is_safe = parts.scheme == "https"
        kind = http.client.HTTPSConnection if is_safe else http.client.HTTPConnection
        self._http = kind(self._host, parts.port, timeout=_CONNECT_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, path: str) -> bytes:
        """Ask for a small document.

        Raises:
            RequestFailed: there is none.
        """
        try:
            self._open()
            self._http.request("GET", self._prefix + path, headers=self._address.headers)
            with contextlib.closing(self._reply()) as reply:
                return reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(error) from error

    def post(self, path: str, body: bytes, sent: Sent) -> Iterator[bytes]:
        """Send JSON, and give the lines of the reply as they come.

        sent: is told how many bytes of how many have gone out.

        Raises:
            RequestFailed: the server refused, or broke off.
        """
        headers = {
            **self._address.headers,
            "content-type": "application/json",
            "content-length": str(len(body)),
        }
        try:
            self._open()
            # Whoever refuses early does not wait for the body's end, but says why.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._http.request("POST", self._prefix + path, _pieces(body, sent), headers)
            with contextlib.closing(self._reply()) as reply:
                while line := reply.readline(_MAX_LINE_BYTES):
                    yield line
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(error) from error

    def _open(self) -> None:
        """Connect, with a patience of its own, unless the last request left a connection."""
        if cast("socket.socket | None", self._http.sock) is None:
            self._http.connect()
            connected = cast("socket.socket", self._http.sock)
            connected.settimeout(self._silence_seconds)

    def _reply(self) -> http.client.HTTPResponse:
        reply = self._http.getresponse()
        if reply.status != _OK:
            raise RequestFailed(_refusal(reply))
        return reply

    def _failed(self, error: Exception) -> RequestFailed:
        url = self._address.url
        match error:
            case ConnectionRefusedError():
                reason = (
                    f"nothing answers at {url}: start a server with `loupe serve`, or name yours "
                    "with --url or LOUPE_URL"
                )
            case socket.gaierror():
                reason = f"there is no host {self._host}"
            case ssl.SSLError():
                reason = f"no safe connection to {url}: {error.reason or error}"
            case TimeoutError():
                reason = f"the server at {url} says nothing any more"
            case http.client.HTTPException():
                reason = f"what answers at {url} broke off, or does not speak HTTP"
            case _:
                reason = (
                    f"the connection to {url} failed: {getattr(error, 'strerror', '') or error}"
                )
        return RequestFailed(reason)


def error_text(encoded: bytes) -> str:
    """Read an error's JSON; empty when it is none of this API's."""
    try:
        error = msgspec.json.decode(encoded, type=_Refusal).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    details = [f"field {error.param}"] if error.param else []
    details += [str(error.code)] if error.code else []
    message = error.message.removesuffix(".")
    return f"{message} ({', '.join(details)})." if details else error.message


def _pieces(body: bytes, sent: Sent) -> Iterator[bytes]:
    for start in range(0, len(body), _CHUNK_BYTES):
        sent(start, len(body))
        yield body[start : start + _CHUNK_BYTES]
    sent(len(body), len(body))


def _refusal(reply: http.client.HTTPResponse) -> str:
    body = reply.read(_MAX_ERROR_BYTES)
    told = error_text(body) or f"the server answered with status {reply.status} {reply.reason}"
    match reply.status:
        case 401:
            return f"{told} Give one with --api-key-file PATH or LOUPE_API_KEY."
        case 404:
            return f"{told} Is it Loupe that answers there?" if not error_text(body) else told
        case 429 | 503 if seconds := reply.headers.get("retry-after"):
            return f"{told} Try again in {seconds} s."
        case status if status >= 500 and (request_id := reply.headers.get("x-request-id")):
            return f"{told} The server's log has more under {request_id}."
        case _:
            return told
