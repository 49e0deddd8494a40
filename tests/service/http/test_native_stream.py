"""Streams: their events, their one end, and clients that leave, wait or do not read."""

import json
import socket

import anyio
import pytest

from service.errors import EngineUnavailable
from service.http import event_stream

QUESTION = {"input_type": "text_only", "text": "What is this?"}


def events_of(text: str) -> list[dict]:
    *blocks, rest = text.split("\n\n")
    assert rest == ""
    return [
        json.loads(block.removeprefix("data: ")) for block in blocks if not block.startswith(":")
    ]


def log_lines(log) -> list[dict]:
    return [event for event in log if str(event["event"]).startswith("HTTP request")]


def raw_request(path: str) -> bytes:
    content = json.dumps(QUESTION).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


async def test_stream_is_chunks_and_one_end(service):
    response = await service.client.post("/v1/chat/stream", json=QUESTION)

    *chunks, end = events_of(response.text)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert chunks == [{"chunk": piece, "done": False} for piece in ("A red", " circle.")]
    assert (end["chunk"], end["done"], end["finish_reason"]) == ("", True, "stop")
    assert end["usage"]["output_tokens"] > 1
    assert end["request_id"] == response.headers["x-request-id"]
    assert list(end["timings_ms"]) == ["prompt", "queue", "prefill", "decode", "total"]
    assert "decode" not in response.headers["server-timing"]


async def test_stream_and_plain_reply_say_the_same(service):
    plain = (await service.client.post("/v1/chat", json=QUESTION)).json()
    stream = await service.client.post("/v1/chat/stream", json=QUESTION)

    *chunks, end = events_of(stream.text)
    assert "".join(chunk["chunk"] for chunk in chunks) == plain["result"]
    for name in ("input_tokens", "output_tokens", "text_tokens", "image_tokens", "cached_tokens"):
        assert end["usage"][name] == plain["usage"][name]
    assert list(end["timings_ms"]) == list(plain["timings_ms"])


async def test_text_of_line_breaks_and_markup_stays_one_event(service):
    service.engine.pieces = ["a\n\ndata: {}\r\n", "</script>\x1b[31m"]

    response = await service.client.post("/v1/chat/stream", json=QUESTION)

    *chunks, _ = events_of(response.text)
    assert "".join(chunk["chunk"] for chunk in chunks) == "".join(service.engine.pieces)


async def test_events_come_as_they_are_made(service):
    service.engine.holds = anyio.Event()

    async with service.client.stream("POST", "/v1/chat/stream", json=QUESTION) as response:
        lines = response.aiter_lines()
        first = await anext(lines)
        assert json.loads(first.removeprefix("data: "))["chunk"] == "A red"
        service.engine.holds.set()
        rest = [line async for line in lines]

    assert any('"done":true' in line for line in rest)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        pytest.param(
            EngineUnavailable("engine_failed", "The engine failed."), "engine_failed", id="known"
        ),
        pytest.param(ValueError("secret"), "internal_error", id="unknown"),
    ],
)
async def test_error_after_the_first_event_is_the_last_event(service, log, error, code):
    service.engine.error = error

    response = await service.client.post("/v1/chat/stream", json=QUESTION)

    *chunks, end = events_of(response.text)
    assert response.status_code == 200
    assert all(chunk["done"] is False for chunk in chunks)
    assert (end["code"], end["done"]) == (code, True)
    assert "error" in end
    assert "secret" not in response.text
    (line,) = log_lines(log)
    assert (line["event"], line["error_code"]) == ("HTTP request failed", code)


async def test_deadline_in_a_stream_is_its_last_event(new_engine, serve):
    engine = new_engine()
    engine.holds = anyio.Event()
    async with serve(engine, request_timeout_seconds=0.3) as (client, _):
        response = await client.post("/v1/chat/stream", json=QUESTION)

    *chunks, end = events_of(response.text)
    assert [chunk["chunk"] for chunk in chunks] == ["A red"]
    assert (end["code"], end["done"]) == ("deadline_exceeded", True)
    assert engine.cancelled == [engine.requests[0].request_id]


async def test_silent_engine_is_bridged_by_heartbeats(service, monkeypatch):
    monkeypatch.setattr(event_stream, "HEARTBEAT_SECONDS", 0.05)
    service.engine.holds = anyio.Event()
    service.engine.pieces = []

    async with service.client.stream("POST", "/v1/chat/stream", json=QUESTION) as response:
        lines = response.aiter_lines()
        assert response.status_code == 200  # before the first event
        assert [await anext(lines) for _ in range(4)] == [": keep-alive", ""] * 2
        service.engine.holds.set()
        rest = [line async for line in lines]

    assert '"done":true' in "".join(rest)


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/stream"])
async def test_client_that_leaves_ends_its_request(service, log, path, eventually):
    service.engine.holds = anyio.Event()
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(raw_request(path))
        await eventually(lambda: service.engine.requests)

    await eventually(lambda: service.engine.cancelled)
    await eventually(lambda: log_lines(log))
    (line,) = log_lines(log)
    assert (line["status_code"], line["event"]) == (499, "HTTP request processed")
    assert line["output_tokens"] > 0
    assert (line["queue_ms"], line["prefill_ms"]) == (20, 10)
    assert service.engine.unfinished == set()


async def test_client_that_leaves_before_the_first_event_ends_its_request(service, log, eventually):
    service.engine.holds = anyio.Event()
    service.engine.pieces = []
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(raw_request("/v1/chat/stream"))
        await eventually(lambda: service.engine.requests)

    await eventually(lambda: service.engine.cancelled)
    await eventually(lambda: log_lines(log))
    assert log_lines(log)[0]["status_code"] == 499


async def test_client_that_leaves_within_its_body_is_logged_as_gone(service, log, eventually):
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(raw_request("/v1/chat")[:-5])
        await anyio.sleep(0.1)

    await eventually(lambda: log_lines(log))
    assert log_lines(log)[0]["status_code"] == 499
    assert service.engine.requests == []


async def test_body_that_does_not_arrive_in_time_is_refused(new_engine, serve):
    async with serve(new_engine(), request_timeout_seconds=0.2) as (_, port):
        stream = await anyio.connect_tcp("127.0.0.1", port)
        async with stream:
            await stream.send(raw_request("/v1/chat")[:-5])
            reply = await stream.receive()

    assert reply.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout" in reply


async def test_client_that_does_not_read_loses_its_stream(service, log, monkeypatch, eventually):
    monkeypatch.setattr(event_stream, "HEARTBEAT_SECONDS", 0.2)
    service.engine.pieces = ["a long piece of text " * 200] * 3000
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", service.port))
        connection.sendall(raw_request("/v1/chat/stream"))

        await eventually(lambda: service.engine.cancelled)
        await eventually(lambda: log_lines(log))

    assert log_lines(log)[0]["status_code"] == 499
    assert service.engine.unfinished == set()


async def test_other_streams_go_on_beside_one_that_does_not_read(service, monkeypatch, eventually):
    monkeypatch.setattr(event_stream, "HEARTBEAT_SECONDS", 0.2)
    service.engine.pieces = ["a long piece of text " * 200] * 500
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", service.port))
        connection.sendall(raw_request("/v1/chat/stream"))
        await eventually(lambda: service.engine.requests)
        service.engine.pieces = ["A red", " circle."]

        response = await service.client.post("/v1/chat/stream", json=QUESTION)

    assert events_of(response.text)[-1]["done"] is True


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/stream"])
async def test_request_that_outlasts_the_drain_time_is_told(new_engine, serve, path, eventually):
    engine = new_engine()
    engine.holds = anyio.Event()
    async with serve(engine, drain_seconds=1, request_timeout_seconds=6) as (_, port):
        stream = await anyio.connect_tcp("127.0.0.1", port)
        await stream.send(raw_request(path))
        await eventually(lambda: engine.requests)

    async with stream:
        reply = b"".join([chunk async for chunk in stream])
    assert b'"code":"engine_stopping"' in reply
    assert engine.cancelled == [engine.requests[0].request_id]
    if path == "/v1/chat":
        assert reply.startswith(b"HTTP/1.1 503 ")
    else:
        assert reply.endswith(b"\n\n\r\n0\r\n\r\n")
