import contextlib
import json
import socket

import anyio
import pytest
import uvicorn

from service.http_protocol import HttpProtocol


class Quick(HttpProtocol):
    head_seconds = 0.3


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield


async def answer(scope, receive, send):
    """Count the body; a PUT is answered without reading it."""
    body = b""
    while scope["method"] != "PUT":
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"got %d" % len(body)})


@pytest.fixture
async def address():
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(answer, http=Quick, ws="none", lifespan="off", log_config=None)
    server = Server(config)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [listener])
        yield listener.getsockname()
        server.should_exit = True


async def converse(address, *pieces: bytes) -> bytes:
    """Send the pieces, then read until the server closes."""
    received = b""
    async with await anyio.connect_tcp(*address) as stream:
        with contextlib.suppress(anyio.BrokenResourceError):
            for piece in pieces:
                await stream.send(piece)
                await anyio.sleep(0.01)
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                received += await stream.receive()
    return received


def status_and_code(received: bytes) -> tuple[int, str]:
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["code"]


CLOSE = b"connection: close\r\n\r\n"
HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n"


async def test_a_request_in_pieces_is_answered(address):
    received = await converse(
        address, HEAD[:7], HEAD[7:], b"content-length: 3\r\n", CLOSE, b"a", b"bc"
    )

    assert received.startswith(b"HTTP/1.1 200")
    assert b"got 3" in received


async def test_a_large_body_is_no_large_head(address):
    body = b"x" * (1024 * 1024)

    received = await converse(address, HEAD + b"content-length: 1048576\r\n" + CLOSE, body)

    assert b"got 1048576" in received


async def test_a_slow_body_is_no_slow_head(address):
    pieces = [b"x"] * 50  # half a second; heads have 0.3

    received = await converse(address, HEAD + b"content-length: 50\r\n" + CLOSE, *pieces)

    assert b"got 50" in received


async def test_a_body_that_outlives_its_answer_is_no_head(address):
    body = [b"x" * 10_000] * 10

    received = await converse(address, b"PUT" + HEAD[4:] + b"content-length: 100000\r\n\r\n", *body)

    assert received.count(b"HTTP/1.1 ") == 1


async def test_two_requests_on_one_connection_are_both_answered(address):
    received = await converse(address, HEAD + b"content-length: 0\r\n\r\n", HEAD + CLOSE)

    assert received.count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([HEAD + b"a: " + b"x" * 70_000 + b"\r\n" + CLOSE], id="one-large-header"),
        pytest.param([HEAD + b"a: b\r\n" * 200 + CLOSE], id="many-headers"),
        pytest.param([b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n" + CLOSE], id="long-target"),
        pytest.param([HEAD + b"a: ", b"x" * 70_000], id="never-ending-header"),
    ],
)
async def test_a_head_that_is_too_large_is_refused(address, pieces):
    assert status_and_code(await converse(address, *pieces)) == (431, "head_too_large")


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"hello\r\n\r\n", id="no-http"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="tls"),
        pytest.param(HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\n", id="two-lengths"),
        pytest.param(
            HEAD + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            id="length-and-chunks",
        ),
        pytest.param(HEAD + b"content-length: -1\r\n\r\n", id="negative-length"),
    ],
)
async def test_what_is_no_request_is_refused(address, request_bytes):
    assert status_and_code(await converse(address, request_bytes)) == (400, "http_invalid")


async def test_a_head_that_does_not_end_in_time_is_refused(address):
    assert status_and_code(await converse(address, HEAD)) == (408, "head_timeout")


async def test_a_second_head_that_does_not_end_in_time_is_refused_too(address):
    received = await converse(address, HEAD + b"content-length: 0\r\n\r\n", HEAD)

    assert received.count(b"HTTP/1.1 200") == 1
    assert b"408 Request Timeout" in received


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([], id="new-connection"),
        pytest.param([HEAD + b"content-length: 0\r\n\r\n", b"\r\n"], id="line-end-after-a-request"),
    ],
)
async def test_a_connection_that_stays_silent_is_closed(address, pieces):
    received = await converse(address, *pieces)

    assert received.count(b"HTTP/1.1 200") == (1 if pieces else 0)
