"""Reads a request's body under limits. Knows bytes and headers, not what they mean."""

from collections.abc import Callable
from email.message import Message
from typing import NamedTuple, NoReturn, TypeVar

import anyio
from litestar.types import Receive, Scope

from service.aside import aside
from service.errors import MediaTypeUnsupported, RequestInvalid, TooLarge
from service.http.attendance import ClientGone

Read = TypeVar("Read")
Sink = Callable[[bytes], object]

_DISCARD_SECONDS = 2.0
_MIN_PIECE_BYTES = 4 * 1024
# Of JSON that is one long text this takes 0.05 ms to read; of nothing but brackets, 2 ms.
MAX_BYTES_ON_LOOP = 256 * 1024


class MediaType(NamedTuple):
    """A Content-Type header: the lower-case type without parameters, its charset and boundary."""

    name: str
    charset: str | None = None
    boundary: str | None = None


class Pieces:
    """Bytes that come in pieces and are joined once; small ones take no more room than large."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._pieces: list[bytes | bytearray] = []

    def append(self, piece: bytes) -> None:
        """Take the next piece."""
        self.num_bytes += len(piece)
        last = self._pieces[-1] if self._pieces else None
        if last is None or len(last) >= _MIN_PIECE_BYTES:
            self._pieces.append(piece)
        elif isinstance(last, bytearray):
            last += piece
        else:
            self._pieces[-1] = bytearray(last) + piece

    def join(self) -> bytes:
        """Return all of them as one, and hold none of them any more."""
        joined = b"".join(self._pieces)
        self._pieces.clear()
        return joined


def media_type(scope: Scope) -> MediaType:
    """Read the body's media type.

    Raises:
        MediaTypeUnsupported: the body is compressed; what it unpacks to has no bound.
    """
    content_type = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value
        elif name == b"content-encoding" and value.strip().lower() != b"identity":
            raise MediaTypeUnsupported(
                "content_encoding_unsupported", "Send the body without content encoding."
            )
    if content_type == b"application/json":
        return MediaType("application/json")
    message = Message()
    message["content-type"] = content_type.decode("latin-1").replace("\r", "").replace("\n", "")
    name = message.get_content_type() if content_type else ""
    return MediaType(name, _parameter(message, "charset"), _parameter(message, "boundary"))


async def read_body(scope: Scope, receive: Receive, max_bytes: int, sink: Sink) -> int:
    """Hand the body to `sink`, chunk by chunk; how long it may take is the caller's to say.

    Returns:
        Its number of bytes.

    Raises:
        TooLarge: more than max_bytes, told from the header where there is one.
        ClientGone: the connection closed first.
    """
    if announced_bytes(scope) > max_bytes:
        await _refuse_unread(receive, max_bytes)
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        num_bytes += len(message["body"])
        if num_bytes > max_bytes:
            await _refuse_unread(receive, max_bytes)
        sink(message["body"])
        if not message["more_body"]:
            return num_bytes


async def read_whole(
    scope: Scope,
    receive: Receive,
    max_bytes: int,
    read: Callable[[bytes], Read],
    max_bytes_on_loop: int = MAX_BYTES_ON_LOOP,
) -> Read:
    """Read the body to its end and return what `read` makes of it; of a large one, aside.

    Raises:
        TooLarge, ClientGone: as in read_body. What `read` raises.
    """
    pieces = Pieces()
    num_bytes = await read_body(scope, receive, max_bytes, pieces.append)
    if num_bytes <= max_bytes_on_loop:
        return read(pieces.join())
    return await aside(lambda: read(pieces.join()))


async def read_json_body(
    scope: Scope, receive: Receive, max_bytes: int, read: Callable[[bytes], Read]
) -> Read:
    """Read a body where only JSON is taken, and return what `read` makes of it.

    Raises:
        MediaTypeUnsupported: announced as something else: a page of another site could send that
            without the browser asking first.
        TooLarge, ClientGone: as in read_body. What `read` raises.
    """
    body_type = media_type(scope)
    if body_type.name != "application/json" or not is_utf_8(body_type):
        raise MediaTypeUnsupported("media_type_unsupported", "Send application/json in UTF-8.")
    return await read_whole(scope, receive, max_bytes, read)


def is_utf_8(body_type: MediaType) -> bool:
    """Tell whether a text's charset is UTF-8, as it is where none is named."""
    return (body_type.charset or "utf-8").lower() in ("utf-8", "utf8")


def announced_bytes(scope: Scope) -> int:
    """Read the Content-Length; 0 where there is none."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            # The server has refused what is no number; a comma is two lengths that agree.
            return int(value) if value.isdigit() else 0
    return 0


async def _refuse_unread(receive: Receive, max_bytes: int) -> NoReturn:
    # Closing on unread bytes resets the connection, and a client still sending would not see why.
    # Most are done sending soon; nothing of it is kept.
    with anyio.move_on_after(_DISCARD_SECONDS):
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            pass
    raise TooLarge("body_too_large", f"The body is larger than {max_bytes} bytes.")


def _parameter(message: Message, name: str) -> str | None:
    value = message.get_param(name)
    if isinstance(value, tuple):
        # RFC 2231 escapes: no client has a reason to write a charset or a boundary with them.
        raise RequestInvalid("media_type_invalid", "The Content-Type header is malformed.")
    return value
