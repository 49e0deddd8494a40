import socket
from typing import NamedTuple

import anyio
import httpx
import pytest
import uvicorn

from inference.control import Stop
from service.http.web_server import WebServer


class Running(NamedTuple):
    """A server, a client of it, and what it told: `stopping`, and the paths that were cut."""

    server: WebServer
    client: httpx.AsyncClient
    told: list[str]
    over: anyio.Event


@pytest.fixture
async def running():
    told = []
    over = anyio.Event()

    async def answer(scope, receive, send):
        """Answer at once, or never at `/never`, with last words when it is cut."""
        start = {"type": "http.response.start", "status": 200, "headers": []}
        try:
            if scope["path"] == "/never":
                await send(start)
                await send({"type": "http.response.body", "body": b"first ", "more_body": True})
                await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            told.append(scope["path"])
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.1)
                await send({"type": "http.response.body", "body": b"last"})
            return
        await send(start)
        await send({"type": "http.response.body", "body": b"well"})

    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(answer, ws="none", lifespan="off", log_config=None)
    server = WebServer(config, lambda: told.append("stopping"))

    async def serve():
        await server.serve([listener])
        over.set()

    async with anyio.create_task_group() as tasks, httpx.AsyncClient(base_url=url) as client:
        tasks.start_soon(serve)
        await server.serving.wait()
        yield Running(server, client, told, over)
        server.leave(Stop(drain_seconds=0.0))


async def until(condition):
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - nothing sets an event
            await anyio.sleep(0.01)


async def test_a_stop_is_told_and_new_clients_are_served_until_the_delay_is_over(running):
    running.server.leave(Stop(drain_seconds=5, delay_seconds=30))
    await until(lambda: running.told == ["stopping"])

    reply = await running.client.get("/")

    assert reply.status_code == 200
    assert reply.headers["connection"] == "close"


async def test_a_stop_ends_an_idle_connection_at_once(running):
    kept = (await running.client.get("/")).headers

    running.server.leave(Stop(drain_seconds=60))

    with anyio.fail_after(5):
        await running.over.wait()
    assert "connection" not in kept


async def test_a_replaced_server_closes_connections_with_their_next_answer(running):
    await running.client.get("/")

    running.server.leave(Stop(drain_seconds=60, is_replaced=True))
    await until(lambda: not any(server.is_serving() for server in running.server.servers))
    reply = await running.client.get("/")

    assert reply.text == "well"
    assert reply.headers["connection"] == "close"
    with anyio.fail_after(4):  # less than quiet connections are given
        await running.over.wait()
    assert running.told == []  # the service goes on


async def test_what_outlasts_the_drain_is_cut_and_has_its_last_words(running):
    async with running.client.stream("GET", "/never") as response:
        pieces = response.aiter_text()
        first = await anext(pieces)
        running.server.leave(Stop(drain_seconds=0.2))

        rest = [piece async for piece in pieces]

    assert [first, *rest] == ["first ", "last"]
    assert running.told == ["stopping", "/never"]


async def test_a_second_stop_shortens_the_first(running):
    async with running.client.stream("GET", "/never") as response:
        pieces = response.aiter_text()
        await anext(pieces)
        running.server.leave(Stop(drain_seconds=60))
        await until(lambda: running.told == ["stopping"])
        running.server.leave(Stop(drain_seconds=0.0))

        assert [piece async for piece in pieces] == ["last"]


async def test_answers_are_counted(running):
    for _ in range(3):
        await running.client.get("/")

    assert running.server.num_answered == 3


async def test_a_server_that_is_replaced_is_told_when_all_of_the_service_stops(running):
    """Before its last requests are cut: their clients have nowhere to come back to."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(running.client.get, "/never")
        await until(lambda: len(running.server.server_state.tasks) == 1)
        running.server.leave(Stop(drain_seconds=60, is_replaced=True))
        await until(lambda: not running.server.servers[0].is_serving())

        running.server.leave(Stop(drain_seconds=0.0))
        await running.over.wait()

    assert running.told == ["stopping", "/never"]
