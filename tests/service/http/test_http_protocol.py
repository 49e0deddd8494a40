import contextlib
import json
import socket
import time

import anyio
import anyio.lowlevel
import pytest
import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import ServiceError
from service.http.body_clock import BodyClock
from service.http.connection_limits import ConnectionLimits
from service.http.http_protocol import HttpProtocol


class Quick(HttpProtocol):
    head_seconds = 0.3
    limits = ConnectionLimits(body_timeout_seconds=1, write_timeout_seconds=0.5, max_connections=4)


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield


async def answer(scope, receive, send):
    """Count the body; a PUT is answered without reading it, a GET with what its path says."""
    if scope["path"] != "/":
        await answer_at_length(int(scope["path"][1:]), receive, send)
        return
    body = b""
    largest = 0
    clock = scope["state"].get(BodyClock.STATE_KEY)
    while scope["method"] != "PUT":
        try:
            message = await (clock.attend(receive) if clock else receive)()
        except ServiceError as error:
            headers = [(b"connection", b"close")]
            await send({"type": "http.response.start", "status": error.status, "headers": headers})
            await send({"type": "http.response.body", "body": b"got %d" % len(body)})
            return
        body += message.get("body", b"")
        largest = max(largest, len(message.get("body", b"")))
        if not message.get("more_body"):
            break
    headers = [(b"largest-piece", b"%d" % largest)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"got %d" % len(body)})


async def answer_at_length(num_pieces, receive, send):
    """Send pieces of 64 KiB, or all at once when there are a thousand."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    piece = b"x" * 65536
    if num_pieces == 1000:
        await send({"type": "http.response.body", "body": piece * num_pieces})
        return
    for _ in range(num_pieces):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture(scope="module")
async def address():
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(answer, http=Quick, ws="none", lifespan="off", log_config=None)
    server = Server(config)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [listener])
        yield listener.getsockname()
        server.should_exit = True


@pytest.fixture
def log():
    with structlog.testing.capture_logs() as events:
        yield events


async def converse(address, *pieces: bytes) -> bytes:
    """Send the pieces, and read until the server closes."""
    received = b""

    async def send() -> None:
        with contextlib.suppress(anyio.BrokenResourceError):
            for piece in pieces:
                await stream.send(piece)
                await anyio.sleep(0.01)

    async with await anyio.connect_tcp(*address) as stream, anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                received += await stream.receive()
        tasks.cancel_scope.cancel()
    return received


def status_and_code(received: bytes) -> tuple[int, str]:
    head, _, body = received.partition(b"\r\n\r\n")
    told = json.loads(body)
    assert told["error"] == {
        "message": told["message"],
        "type": "overloaded_error"
        if b" 503 " in head.split(b"\r\n")[0]
        else "invalid_request_error",
        "param": None,
        "code": told["code"],
    }
    return int(head.split()[1]), told["code"]


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


async def test_a_body_that_does_not_end_in_time_is_told_and_the_connection_closed(address):
    pieces = [b"1\r\nx\r\n"] * 200  # two seconds; bodies have one

    received = await converse(address, HEAD + b"transfer-encoding: chunked\r\n\r\n", *pieces)

    assert received.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in received


@pytest.mark.parametrize("pieces", [[b"xy"], [b"x", b"y"]], ids=["at once", "in pieces"])
async def test_a_body_without_memory_for_it_is_refused_for_now(address, pieces, monkeypatch):
    shortages = iter([MemoryError()])
    on_body = HttpToolsProtocol.on_body

    def short(protocol, body):
        for shortage in shortages:
            raise shortage
        on_body(protocol, body)

    monkeypatch.setattr(HttpToolsProtocol, "on_body", short)
    body = [*pieces, b"z" * 1000]
    head = HEAD + b"content-length: 1002\r\n\r\n"

    received = await converse(address, head + body[0], *body[1:], HEAD)

    assert received.startswith(b"HTTP/1.1 503")
    assert received.count(b"HTTP/1.1 ") == 1
    assert (await converse(address, HEAD + CLOSE)).startswith(b"HTTP/1.1 200")


async def test_a_head_without_memory_for_it_is_refused_for_now(address, monkeypatch):
    def short(protocol, url):
        raise MemoryError

    monkeypatch.setattr(HttpToolsProtocol, "on_url", short)

    received = await converse(address, HEAD + CLOSE)

    assert status_and_code(received) == (503, "overloaded")


async def test_a_body_that_nobody_reads_is_not_waited_for(address):
    pieces = [b"x"] * 250

    received = await converse(address, b"PUT" + HEAD[4:] + b"content-length: 1000\r\n\r\n", *pieces)

    assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "upgrade",
    [
        pytest.param(b"connection: upgrade\r\nupgrade: websocket\r\n", id="websocket"),
        pytest.param(
            b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n",
            id="http2",
        ),
    ],
)
async def test_an_upgrade_is_passed_over_and_its_connection_goes_on(address, upgrade):
    body = b"content-length: 3\r\n\r\nabc"

    together = await converse(address, HEAD + upgrade + body + HEAD + upgrade + CLOSE)
    apart = await converse(address, HEAD + upgrade + body, HEAD + body, HEAD + CLOSE)

    assert together.count(b"HTTP/1.1 200") == 2
    assert apart.count(b"HTTP/1.1 200") == 3
    assert apart.count(b"got 3") == 2


async def test_many_upgrades_in_one_piece_are_all_answered(address):
    upgrade = HEAD + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 0\r\n\r\n"

    received = await converse(address, upgrade * 1500 + HEAD + CLOSE)

    assert received.count(b"HTTP/1.1 200") == 1501


async def test_time_is_not_called_before_what_came_while_the_loop_stood_still_is_read(address):
    async with await anyio.connect_tcp(*address) as client:
        await anyio.sleep(0.05)
        time.sleep(Quick.head_seconds + 0.1)  # noqa: ASYNC251 - the loop stands still
        await anyio.lowlevel.checkpoint()  # what is due is done, and only then more is read
        await client.send(HEAD + CLOSE)
        received = await client.receive()

    assert received.startswith(b"HTTP/1.1 200")


async def test_a_large_body_comes_in_pieces_that_leave_others_their_turn(address):
    size = 3_000_000
    body = b"content-length: %d\r\n\r\n" % size + b"x" * size

    received = await converse(address, HEAD + body + HEAD + CLOSE)

    assert b"got 3000000" in received
    largest = int(received.partition(b"largest-piece: ")[2].partition(b"\r")[0])
    assert 0 < largest <= 64 * 1024
    assert received.count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 9, id="http2-at-once"),
        pytest.param(b"CONNECT host:80 HTTP/1.1\r\nhost: host\r\n\r\n", id="tunnel"),
        pytest.param(b"GET / HTTP/1.1\nhost: x\n\n", id="bare-line-feeds"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: x\r\n a: b\r\n\r\n", id="folded-header"),
        pytest.param(b"GET / HTTP/1.1\r\nho st: x\r\n\r\n", id="space-in-a-name"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: x\0\r\n\r\n", id="nul-in-a-value"),
        pytest.param(HEAD + b"transfer-encoding: gzip\r\n\r\n", id="other-coding"),
        pytest.param(HEAD + b"transfer-encoding: chunked\r\n\r\nxyz\r\n", id="no-chunk"),
    ],
)
async def test_other_protocols_and_their_tricks_are_refused(address, request_bytes):
    received = await converse(address, request_bytes)

    assert received.startswith(b"HTTP/1.1 400")
    assert b"HTTP/1.1 200" not in received


@pytest.mark.parametrize(
    "num_pieces", [pytest.param(200, id="stream"), pytest.param(1000, id="reply")]
)
async def test_a_client_that_does_not_read_is_cut_and_no_other_waits(address, num_pieces, log):
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect(address)
    with reader:
        reader.setblocking(False)
        reader.send(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % num_pieces)
        other = await converse(address, b"GET /20 HTTP/1.1\r\nhost: x\r\n" + CLOSE)
        num_bytes = 0
        with anyio.fail_after(10):
            while not any(event["event"] == "slow_reader_cut" for event in log):
                await anyio.sleep(0.1)
                with contextlib.suppress(BlockingIOError):
                    num_bytes += len(reader.recv(1))
        with contextlib.suppress(ConnectionResetError):
            while received := reader.recv(65536):
                num_bytes += len(received)

    assert len(other) > 20 * 65536
    assert num_bytes < 100_000


async def test_a_client_that_reads_slowly_but_reads_is_served(address):
    async with await anyio.connect_tcp(*address) as stream:
        await stream.send(b"GET /20 HTTP/1.1\r\nhost: x\r\n" + CLOSE)
        num_bytes = 0
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                num_bytes += len(await stream.receive(65536))
                await anyio.sleep(0.05)

    assert num_bytes > 20 * 65536


async def test_connections_beyond_the_limit_are_told_and_closed(address):
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(4):
            stream = await stack.enter_async_context(await anyio.connect_tcp(*address))
            await stream.send(HEAD[:-1])
        refused = await converse(address)

    assert status_and_code(refused) == (503, "overloaded")
    assert b"retry-after" in refused
    with anyio.fail_after(5):
        while not (await converse(address, HEAD + CLOSE)).startswith(b"HTTP/1.1 200"):  # noqa: ASYNC110
            await anyio.sleep(0.05)
