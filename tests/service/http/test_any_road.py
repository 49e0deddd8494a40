"""One conversation by every road is one request to the engine; the preview tells of the same."""

import asyncio
import base64
import contextlib
import io
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from service.media.fetch_settings import FetchSettings

RELAXED = settings(
    max_examples=settings().max_examples // 5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
PATH = "/v1/chat/completions"
SEEN = "/v1/preview"


def saved(size: tuple[int, int], colour: tuple[int, ...], file_format: str, mode: str) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, file_format)
    return file.getvalue()


PICTURES = [
    saved((64, 48), (200, 30, 30), "PNG", "RGB"),
    saved((33, 97), (30, 30, 200), "JPEG", "RGB"),
    saved((40, 40), (0, 90, 0, 128), "PNG", "RGBA"),
    saved((70, 20), (1, 2, 3), "WEBP", "RGB"),
]
Parts: TypeAlias = list[str | int]  # a text, or the number of a picture

TEXTS = st.sampled_from(
    ["Hi", "What is this?", "你好 \U0001f642", "<|image_pad|>", " \n x", "a\r\nb"]
)
PARTS = st.lists(
    TEXTS | st.integers(0, len(PICTURES) - 1), min_size=1, max_size=6
).filter(lambda parts: 1 <= sum(isinstance(part, int) for part in parts) <= 3)  # fmt: skip
SYSTEMS = st.none() | TEXTS


class Roads(NamedTuple):
    """A server, its engine, and where else each picture can be had."""

    client: httpx.AsyncClient
    engine: Any
    model: str
    urls: list[str]
    file_ids: list[str]


@pytest.fixture(scope="module")
async def roads(new_engine, serve, model) -> AsyncIterator[Roads]:
    async with origin() as port:
        fetch = FetchSettings(fetch_private_hosts=("127.0.0.1",), fetch_ports=(port,))
        engine = new_engine()
        async with serve(engine, fetch=fetch) as (client, _):
            file_ids = [await upload(client, picture) for picture in PICTURES]
            urls = [f"http://127.0.0.1:{port}/{place}" for place in range(len(PICTURES))]
            yield Roads(client, engine, model.name, urls, file_ids)


@contextlib.asynccontextmanager
async def origin() -> AsyncIterator[int]:
    """Serve the pictures by their numbers."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = PICTURES[int(head.split()[1][1:])]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def upload(client: httpx.AsyncClient, picture: bytes) -> str:
    response = await client.post(
        "/v1/files", data={"purpose": "vision"}, files={"file": ("a", picture)}
    )
    return response.json()["id"]


def in_base64(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def ways_of(roads: Roads) -> dict[str, list[str]]:
    """Name each picture in every way that a URL's field takes."""
    return {
        "data": ["data:image/png;base64," + in_base64(picture) for picture in PICTURES],
        "other type": ["data:image/x-any;base64," + in_base64(picture) for picture in PICTURES],
        "url": roads.urls,
        "file id": roads.file_ids,
    }


def conversation(
    roads: Roads, parts: Parts, system: str | None, show: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Write an OpenAI request; show: the part for each picture."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else show[part] for part in parts
    ]
    messages = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return {"model": roads.model, "messages": messages, "max_tokens": 10}


def conversations(roads: Roads, parts: Parts, system: str | None) -> list[dict[str, Any]]:
    shown = [
        [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        for urls in ways_of(roads).values()
    ]
    shown.append([{"type": "file", "file": {"file_data": in_base64(each)}} for each in PICTURES])
    shown.append([{"type": "file", "file": {"file_id": file_id}} for file_id in roads.file_ids])
    return [conversation(roads, parts, system, show) for show in shown]


def model_input(request: Any) -> tuple[Any, ...]:
    return (
        tuple(request.prompt_token_ids),
        tuple((each.content_hash, each.height, each.width, bytes(each.pixels))
              for each in request.visions),
    )  # fmt: skip


async def check_alike(roads: Roads, asked: list[tuple[str, dict[str, Any]]], usage_of: str) -> None:
    """Ask all; the engine gets one request many times, and the preview tells its figures."""
    roads.engine.reset()
    usages = []
    for path, body in asked:
        response = await roads.client.post(path, **body)
        assert response.status_code == 200, response.text
        if not response.headers["content-type"].startswith("text/event-stream"):
            usages.append(response.json()["usage"][usage_of])
    inputs = {model_input(request) for request in roads.engine.requests}
    previews = [(await roads.client.post(SEEN, **body)).json() for _, body in asked]

    assert len(roads.engine.requests) == len(asked)
    assert len(inputs) == 1
    ((token_ids, visions),) = inputs
    assert set(usages) == {len(token_ids)}
    for preview in previews:
        seen = [image for medium in preview["media"] for image in medium["images"]]
        assert preview["accepted"]
        assert preview["prompt_tokens"] == len(token_ids)
        assert [image["hash"] for image in seen] == [vision[0].hex() for vision in visions]
        assert preview["image_tokens"] == sum(image["tokens"] for image in seen)
        assert preview["text_tokens"] == len(token_ids) - preview["image_tokens"]


@RELAXED
@given(parts=PARTS, system=SYSTEMS)
async def test_an_interleaved_conversation(roads, parts, system):
    asked = [(PATH, {"json": body}) for body in conversations(roads, parts, system)]
    asked.append((PATH, {"json": asked[0][1]["json"] | {"stream": True}}))

    await check_alike(roads, asked, "prompt_tokens")


@RELAXED
@given(
    places=st.lists(st.integers(0, len(PICTURES) - 1), min_size=1, max_size=3),
    text=TEXTS,
    system=st.none() | TEXTS,
)
async def test_a_question_behind_its_pictures_in_both_dialects(roads, places, text, system):
    native: dict[str, Any] = {"text": text} | ({} if system is None else {"system": system})
    files = [("image", ("a", PICTURES[place])) for place in places]
    lists = {**ways_of(roads), "base64": [in_base64(picture) for picture in PICTURES]}
    asked = [
        ("/v1/chat", {"json": native | {"images": [way[place] for place in places]}})
        for way in lists.values()
    ]
    asked += [
        ("/v1/chat", {"data": native, "files": files}),
        ("/v1/chat", {"data": native | {"images": [roads.file_ids[place] for place in places]}}),
        ("/v1/chat", {"json": native | {"files": [roads.urls[place] for place in places]}}),
    ]
    if len(places) == 1:
        asked += [
            ("/v1/chat", {"json": native | {"image_url": roads.urls[places[0]]}}),
            ("/v1/chat", {"json": native | {"image_base64": in_base64(PICTURES[places[0]])}}),
        ]
    await check_alike(roads, asked, "input_tokens")
    (expected,) = {model_input(request) for request in roads.engine.requests}
    roads.engine.reset()
    for body in conversations(roads, [*places, text], system):
        assert (await roads.client.post(PATH, json=body)).status_code == 200
    assert {model_input(request) for request in roads.engine.requests} == {expected}
