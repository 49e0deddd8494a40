"""Bodies and readers of the whole application that take their time, over raw sockets."""

import contextlib
import json
import socket

import anyio
import pytest

from service.http.connection_limits import ConnectionLimits

HEAD = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


async def drip(port: int, head: bytes, piece: bytes) -> bytes:
    """Send the head, then a piece every 50 ms until the server closes; return what it said."""
    received = b""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:

        async def send() -> None:
            with contextlib.suppress(anyio.BrokenResourceError):
                for _ in range(200):
                    await stream.send(piece)
                    await anyio.sleep(0.05)

        await stream.send(head)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    received += await stream.receive()
            tasks.cancel_scope.cancel()
    return received


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        pytest.param(b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n", id="chunks-without-end"),
        pytest.param(b"content-length: 1000\r\n\r\n", b" ", id="announced-length"),
        pytest.param(b"content-length: 1000\r\n\r\n", b"", id="nothing-at-all"),
    ],
)
@pytest.mark.parametrize("path", [b"/v1/chat", b"/v1/chat/stream", b"/v1/chat/completions"])
async def test_a_body_that_drips_is_told_so_and_cut(new_engine, serve, log, path, head, piece):
    limits = ConnectionLimits(body_timeout_seconds=0.4)
    engine = new_engine()
    async with serve(engine, connections=limits) as (_, port):
        received = await drip(port, HEAD % path + head, piece)

    answer_head, _, body = received.partition(b"\r\n\r\n")
    answer = json.loads(body)
    (line,) = [event for event in log if "status_code" in event]
    assert answer_head.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in answer_head
    assert answer.get("error", answer)["code"] == "body_timeout"
    assert (line["status_code"], line["error_code"]) == (408, "body_timeout")
    assert engine.requests == []


async def test_a_stream_that_nobody_reads_is_cut_counted_and_cancelled(
    new_engine, serve, log, picture_text, eventually
):
    engine = new_engine()
    engine.pieces = ["word " * 400] * 1000
    body = json.dumps({"text": "Hi", "image_base64": picture_text}).encode()
    limits = ConnectionLimits(write_timeout_seconds=0.3)
    async with serve(engine, connections=limits) as (client, port):
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with reader:
            reader.connect(("127.0.0.1", port))
            length = b"content-length: %d\r\n\r\n" % len(body)
            reader.sendall(HEAD % b"/v1/chat/stream" + length + body)
            await eventually(lambda: engine.unfinished)
            while_it_stalls = await client.get("/health/ready")
            await eventually(lambda: engine.cancelled)
            await eventually(lambda: [event for event in log if event.get("status_code") == 499])

    assert while_it_stalls.status_code == 200
    assert engine.unfinished == set()
    assert any(event["event"] == "slow_reader_cut" for event in log)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        pytest.param({"content-type": "text/plain"}, "media_type_unsupported", id="text"),
        pytest.param(
            {"content-type": "application/json", "content-encoding": "gzip"},
            "content_encoding_unsupported",
            id="compressed",
        ),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/completions"])
async def test_a_body_of_another_kind_is_refused(service, path, headers, code):
    refused = await service.client.post(path, content=b'{"text": "Hi"}', headers=headers)

    answer = refused.json()
    assert refused.status_code == 415
    assert answer.get("error", answer)["code"] == code


@pytest.mark.parametrize("path", [b"/v1/chat", b"/v1/chat/completions"])
async def test_a_body_that_is_announced_too_large_is_not_taken(service, path):
    received = await drip(service.port, HEAD % path + b"content-length: 200000000\r\n\r\n", b" ")

    answer = json.loads(received.partition(b"\r\n\r\n")[2])
    assert received.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in received
    assert answer.get("error", answer)["code"] == "body_too_large"
