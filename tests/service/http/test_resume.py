"""Streams that outlive their client's connection, and the worker that they began in."""

import json
import re
import resource
from collections.abc import Mapping

import anyio
import httpx
import pytest

from service.access.key_file import add_key
from service.access.settings import AccessSettings

QUESTION = {"input_type": "text_only", "text": "What is this?"}
RESUMABLE = {"x-resumable": "true"}
PATH = "/v1/chat/stream"


def numbered(text: str) -> list[tuple[int, dict]]:
    """Read whole events: their numbers, and what they say."""
    found = re.findall(r"id: [0-9a-f]{32}:(\d+)\ndata: (.*)\n\n", text)
    assert text.count("data: ") == len(found)
    return [(int(number), json.loads(data)) for number, data in found]


async def begin(client: httpx.AsyncClient, question: Mapping[str, object] = QUESTION) -> str:
    """Ask, see the first event, and leave."""
    async with client.stream("POST", PATH, json=question, headers=RESUMABLE) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                break
        return response.headers["x-stream-id"]


async def come_back(client: httpx.AsyncClient, stream_id: str, after: int) -> httpx.Response:
    headers = {"last-event-id": f"{stream_id}:{after}"}
    return await client.get(f"/v1/streams/{stream_id}", headers=headers)


async def test_a_stream_has_ids_only_where_they_are_asked_for(service):
    plain = await service.client.post(PATH, json=QUESTION)
    resumable = await service.client.post(PATH, json=QUESTION, headers=RESUMABLE)

    assert "x-stream-id" not in plain.headers
    assert "id: " not in plain.text
    events = numbered(resumable.text)
    assert [number for number, _ in events] == [1, 2, 3]
    assert [event["chunk"] for _, event in events] == ["A red", " circle.", ""]
    assert resumable.headers["content-type"] == plain.headers["content-type"]


async def test_a_full_disk_refuses_what_would_be_kept_there(service):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        refused = await service.client.post(PATH, json=QUESTION, headers=RESUMABLE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    afterwards = await service.client.post(PATH, json=QUESTION, headers=RESUMABLE)

    assert (refused.status_code, refused.json()["code"]) == (503, "storage_full")
    assert [number for number, _ in numbered(afterwards.text)] == [1, 2, 3]


async def test_a_stream_goes_on_without_its_client(service, eventually):
    service.engine.holds = anyio.Event()
    stream_id = await begin(service.client)
    service.engine.holds.set()
    await eventually(lambda: not service.engine.unfinished)

    reply = await come_back(service.client, stream_id, after=1)

    assert [(number, event["chunk"]) for number, event in numbered(reply.text)] == [
        (2, " circle."),
        (3, ""),
    ]
    assert service.engine.cancelled == []
    assert len(service.engine.requests) == 1


async def test_who_comes_back_is_told_what_comes_from_then_on(service):
    service.engine.holds = anyio.Event()
    stream_id = await begin(service.client)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(release_later, service.engine.holds)
        reply = await come_back(service.client, stream_id, after=0)
        assert [number for number, _ in numbered(reply.text)] == [1, 2, 3]


async def release_later(event: anyio.Event) -> None:
    await anyio.sleep(0.2)
    event.set()


async def test_without_a_last_event_everything_is_told_again(service):
    whole = await service.client.post(PATH, json=QUESTION, headers=RESUMABLE)

    again = await service.client.get(f"/v1/streams/{whole.headers['x-stream-id']}")

    assert again.text == whole.text


async def test_a_client_that_leaves_before_the_first_event_cancels(service, eventually):
    service.engine.holds = anyio.Event()
    service.engine.pieces = []

    with pytest.raises(httpx.ReadTimeout):
        await service.client.post(PATH, json=QUESTION, headers=RESUMABLE, timeout=0.3)

    await eventually(lambda: service.engine.cancelled)


@pytest.mark.slow
async def test_a_stream_that_nobody_comes_back_to_is_cancelled(serve, new_engine, eventually):
    engine = new_engine()
    engine.holds = anyio.Event()
    async with serve(engine, resume_seconds=0) as (client, _):
        stream_id = await begin(client)

        await eventually(lambda: engine.cancelled)

        assert (await come_back(client, stream_id, after=0)).status_code == 404


async def test_an_error_is_the_last_event_and_is_told_again(service):
    service.engine.error = RuntimeError("canary")

    first = await service.client.post(PATH, json=QUESTION, headers=RESUMABLE)
    again = await come_back(service.client, first.headers["x-stream-id"], after=2)

    assert [event.get("code") for _, event in numbered(first.text)] == [
        None,
        None,
        "internal_error",
    ]
    assert numbered(again.text) == numbered(first.text)[2:]


async def test_a_reply_that_is_no_stream_is_as_ever(service):
    reply = await service.client.post("/v1/chat", json=QUESTION, headers=RESUMABLE)
    refused = await service.client.post(PATH, json={"text": 3}, headers=RESUMABLE)

    assert reply.json()["result"] == "A red circle."
    assert refused.status_code == 422
    assert refused.json()["code"] == "type_invalid"


@pytest.mark.parametrize("limit", ["max_resumable_streams", "max_resumable_bytes"])
async def test_no_more_are_kept_than_the_operator_allows(serve, new_engine, limit):
    async with serve(new_engine(), **{limit: 0}) as (client, _):
        refused = await client.post(PATH, json=QUESTION, headers=RESUMABLE)
        plain = await client.post(PATH, json=QUESTION)

    assert refused.status_code == 503
    assert refused.json()["code"] == "overloaded"
    assert plain.status_code == 200


async def test_what_was_told_whole_has_nothing_to_add(service):
    whole = await service.client.post(PATH, json=QUESTION, headers=RESUMABLE)

    reply = await come_back(service.client, whole.headers["x-stream-id"], after=3)

    assert reply.status_code == 204


@pytest.mark.parametrize(
    "last_event_id",
    ["{id}:4", "{id}:x", "{id}:-1", "{id}", "0:1", "{id}:1:1", f"{{id}}:{10**30}"],
)
async def test_an_event_that_the_stream_does_not_have_is_refused(service, last_event_id):
    whole = await service.client.post(PATH, json=QUESTION, headers=RESUMABLE)
    stream_id = whole.headers["x-stream-id"]

    reply = await service.client.get(
        f"/v1/streams/{stream_id}", headers={"last-event-id": last_event_id.format(id=stream_id)}
    )

    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "event_id_invalid"


@pytest.mark.parametrize("stream_id", ["0" * 32, "A" * 32, "x", "..", "%2e%2e%2fdocs"])
async def test_a_stream_that_is_not_there_is_404(service, stream_id):
    reply = await service.client.get(f"/v1/streams/{stream_id}")

    assert reply.status_code == 404


async def test_another_tenant_s_stream_is_not_there(serve, new_engine, tmp_path):
    keys = tmp_path / "keys.toml"
    ours, theirs = (
        {"authorization": f"Bearer {add_key(keys, tenant, tenant=tenant, is_admin=False)}"}
        for tenant in ("ours", "theirs")
    )
    async with serve(new_engine(), access=AccessSettings(api_keys=str(keys))) as (client, _):
        whole = await client.post(PATH, json=QUESTION, headers=RESUMABLE | ours)
        path = f"/v1/streams/{whole.headers['x-stream-id']}"

        found = await client.get(path, headers=ours)
        not_found = await client.get(path, headers=theirs)

    assert found.text == whole.text
    assert not_found.status_code == 404
    assert not_found.json()["error"]["code"] == "stream_not_found"


@pytest.mark.slow
async def test_a_worker_out_of_time_leaves_its_stream_to_another(
    serve, new_engine, tmp_path, picture_text
):
    first_engine, second_engine = new_engine(), new_engine()
    first_engine.holds = anyio.Event()
    second_engine.pieces = [" circle."]
    question = {"text": "What is this?", "image_base64": picture_text}
    async with serve(second_engine, shared=str(tmp_path)) as (second, _):
        async with serve(first_engine, shared=str(tmp_path), drain_seconds=1) as (first, _):
            stream_id = await begin(first, question)

        reply = await come_back(second, stream_id, after=1)

    assert [(number, event["chunk"]) for number, event in numbered(reply.text)] == [
        (2, " circle."),
        (3, ""),
    ]
    (asked,), (rest,) = first_engine.requests, second_engine.requests
    assert rest.is_replay
    assert [len(token_ids) for token_ids in rest.output_prefixes] == [2]
    assert rest.prompt_token_ids == asked.prompt_token_ids
    assert rest.sampling == asked.sampling
    assert [bytes(vision.pixels) for vision in rest.visions] == [
        bytes(vision.pixels) for vision in asked.visions
    ]
