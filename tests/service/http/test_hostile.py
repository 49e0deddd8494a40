"""Hostile clients whom only an engine that acts a script can show: those who leave, and forgers.

Rows are numbered as in tests/hostile/test_rows.py.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import anyio
import pytest

from service.access.settings import AccessSettings
from service.media.fetch_settings import FetchSettings

ASK = {"input_type": "text_only", "text": "Hi"}


class SilentOrigin:
    """Takes a question and never answers. asked, left: set when somebody came, and went."""

    def __init__(self) -> None:
        self.asked, self.left = asyncio.Event(), asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked.set()
        with contextlib.suppress(OSError):
            await reader.read()
        self.left.set()
        writer.close()


@contextlib.asynccontextmanager
async def silent_origin() -> AsyncIterator[tuple[SilentOrigin, int]]:
    origin = SilentOrigin()
    server = await asyncio.start_server(origin.answer, "127.0.0.1", 0)
    async with server:
        yield origin, server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=f"row-70-while-fetching-{path}")
        for path in ("/v1/chat", "/v1/chat/stream", "/v1/chat/completions", "/v1/preview")
    ],
)
async def test_a_client_that_leaves_while_its_picture_is_fetched_ends_the_fetch(
    new_engine, serve, model, log, eventually, path
):
    engine = new_engine()
    async with silent_origin() as (origin, port):
        url = f"http://127.0.0.1:{port}/"
        shown = {"type": "image_url", "image_url": {"url": url}}
        body: dict[str, object] = {"input_type": "image_only", "image_url": url}
        if path == "/v1/chat/completions":
            body = {"model": model.name, "messages": [{"role": "user", "content": [shown]}]}
        fetch = FetchSettings(
            fetch_private_hosts=("127.0.0.1",), fetch_ports=(port,), fetch_timeout_seconds=60
        )
        async with serve(engine, fetch=fetch) as (client, _), anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: client.post(path, json=body))
            with anyio.fail_after(5):
                await origin.asked.wait()
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await origin.left.wait()
                    await eventually(lambda: [line for line in log if line.get("status_code")])

    (line,) = [line for line in log if "status_code" in line]
    assert line["status_code"] == 499
    assert engine.requests == []


async def test_a_forwarded_host_opens_no_door(new_engine, serve):
    access = AccessSettings(allowed_hosts=("good.example",))
    async with serve(new_engine(), access=access) as (client, _):
        forged = {"host": "evil.example", "x-forwarded-host": "good.example"}
        refused = await client.post("/v1/chat", json=ASK, headers=forged)
        host = {"host": "good.example", "x-forwarded-host": "evil.example"}
        taken = await client.post("/v1/chat", json=ASK, headers=host)

    assert (refused.status_code, refused.json()["code"]) == (400, "host_invalid")
    assert taken.status_code == 200


@pytest.mark.parametrize("text", ["<b>", "127.0.0.1, " * 500, "::1", "é"])
async def test_a_forwarded_address_is_no_more_than_a_line_in_the_log(service, log, text):
    headers = [(b"x-forwarded-for", text.strip().encode()), (b"x-real-ip", b"10.0.0.1")]
    response = await service.client.post("/v1/chat", json=ASK, headers=headers)

    assert response.status_code == 200
    assert text.strip() not in response.text
    assert "10.0.0.1" not in json.dumps(log)
