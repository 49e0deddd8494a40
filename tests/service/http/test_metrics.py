"""What one worker counts of its requests, and how `/metrics` says it."""

import base64
import json
import re
import socket

import anyio
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from inference.protocol import Admission, Delta, Finish, FinishReason
from service.access.key_file import add_key
from service.access.settings import AccessSettings
from service.errors import Overloaded
from service.media.fetch_settings import FetchSettings
from service.metrics.settings import MetricsSettings
from service.metrics.worker_metrics import WorkerMetrics

QUESTION = {"input_type": "text_only", "text": "What is this?"}


async def figures(client, **headers: str) -> dict[str, float]:
    text = (await client.get("/metrics", headers=headers)).text
    return {
        sample.name
        + "".join(f"{{{name}={value}}}" for name, value in sorted(sample.labels.items())): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
async def fresh(new_engine, serve):
    """A server whose counters are at 0: its client, its engine and its port."""
    engine = new_engine()
    async with serve(engine) as (client, port):
        yield client, engine, port


def raw_post(content: dict) -> bytes:
    body = json.dumps(content).encode()
    head = "POST /v1/chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def test_an_answers_usage_and_times_are_counted(fresh):
    client, _, _ = fresh

    reply = (await client.post("/v1/chat", json=QUESTION)).json()
    stream = await client.post("/v1/chat/stream", json=QUESTION)
    found = await figures(client)

    usage = reply["usage"]
    assert stream.status_code == 200
    assert found["loupe_requests_total{route=/v1/chat}{status=200}"] == 1
    assert found["loupe_requests_total{route=/v1/chat/stream}{status=200}"] == 1
    assert found["loupe_prompt_tokens_total"] == 2 * usage["input_tokens"]
    assert found["loupe_output_tokens_total"] == 2 * usage["output_tokens"]
    assert found["loupe_cached_tokens_total"] == 2 * usage["cached_tokens"]
    assert found["loupe_answers_total{finish_reason=stop}"] == 2
    assert found["loupe_request_queue_time_seconds_sum"] == pytest.approx(0.04)
    assert found["loupe_request_prefill_time_seconds_sum"] == pytest.approx(0.02)
    assert found["loupe_request_decode_time_seconds_sum"] == pytest.approx(0.08)
    assert found["loupe_time_to_first_token_seconds_count"] == 2
    assert found["loupe_e2e_request_latency_seconds_count"] == 2
    assert found["loupe_open_streams"] == 0
    assert found["loupe_requests_in_flight"] == 1  # the scrape itself


async def test_a_stream_is_counted_before_its_last_event_is_read(fresh):
    """Many clients stop reading there, and what kills the worker next must not undo it."""
    client, _, _ = fresh

    found: dict[str, float] = {}
    async with client.stream("POST", "/v1/chat/stream", json=QUESTION) as stream:
        async for line in stream.aiter_lines():
            if '"done":true' in line:
                found = await figures(client)
                break

    assert found["loupe_requests_total{route=/v1/chat/stream}{status=200}"] == 1
    assert found["loupe_e2e_request_latency_seconds_count"] == 1


async def test_pictures_are_counted_with_their_pixels_and_times(fresh, picture_text):
    client, _, _ = fresh

    await client.post("/v1/chat", json={"text": "What?", "image_base64": picture_text})
    found = await figures(client)

    assert found["loupe_images_total"] == 1
    assert found["loupe_image_pixels_sum"] >= 64 * 64
    assert found["loupe_image_decode_seconds_count"] == 1
    assert found["loupe_vision_encode_seconds_sum"] == pytest.approx(0.03)
    assert found["loupe_image_fetch_seconds_count"] == 0


async def test_refusals_are_counted_by_code(fresh):
    client, engine, _ = fresh
    broken = base64.b64encode(b"\x89PNG\r\n\x1a\n no picture").decode()

    await client.post("/v1/chat", json={"text": "What?", "image_base64": broken})
    await client.get("/made/up/path")
    engine.error = Overloaded(1.0)
    engine.pieces = []
    await client.post("/v1/chat", json=QUESTION)
    found = await figures(client)

    assert found["loupe_requests_refused_total{code=image_invalid}"] == 1
    assert found["loupe_images_refused_total{reason=image_invalid}"] == 1
    assert found["loupe_requests_refused_total{code=overloaded}"] == 1
    assert found["loupe_requests_total{route=/v1/chat}{status=503}"] == 1
    assert found["loupe_requests_total{route=other}{status=404}"] == 1
    assert not any("made" in name for name in found)


@pytest.mark.parametrize(("num_pieces", "stage"), [(1, "decode"), (0, "queued")])
async def test_a_client_that_leaves_is_counted_where_it_left(fresh, eventually, num_pieces, stage):
    client, engine, port = fresh
    engine.holds = anyio.Event()
    engine.pieces = ["A red"] * num_pieces

    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(raw_post(QUESTION))
        await eventually(lambda: engine.unfinished)
        await anyio.sleep(0.1)  # the first piece is on its way, and the connection is watched
    await eventually(lambda: engine.cancelled)
    with anyio.fail_after(5):
        while (await figures(client))[f"loupe_client_disconnects_total{{stage={stage}}}"] != 1:  # noqa: ASYNC110
            await anyio.sleep(0.05)
    found = await figures(client)

    assert found["loupe_requests_total{route=/v1/chat}{status=499}"] == 1
    assert found["loupe_e2e_request_latency_seconds_count"] == 0


async def test_a_client_that_leaves_while_its_picture_is_fetched(new_engine, serve, eventually):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port_of_pictures = silent.getsockname()[1]
        fetch = FetchSettings(fetch_private_hosts=("127.0.0.1",), fetch_ports=(port_of_pictures,))
        async with serve(new_engine(), fetch=fetch) as (client, port):
            url = f"http://127.0.0.1:{port_of_pictures}/a.png"
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(raw_post({"text": "What?", "image_url": url}))
                silent.settimeout(5)
                fetching, _ = await anyio.to_thread.run_sync(silent.accept)
                await anyio.sleep(0.1)  # the connection is watched
            name = "loupe_client_disconnects_total{stage=fetching}"
            with anyio.fail_after(5), fetching:
                while (await figures(client))[name] != 1:  # noqa: ASYNC110
                    await anyio.sleep(0.05)
            found = await figures(client)

    assert found["loupe_image_fetch_seconds_count"] == 1


async def test_a_reply_tells_its_times_although_nothing_could_be_fetched(new_engine, serve):
    async with serve(new_engine()) as (client, _):
        question = {"text": "What?", "image_url": "http://127.0.0.1/a.png"}
        reply = await client.post("/v1/chat", json=question)
        found = await figures(client)

    assert reply.status_code == 400
    assert re.fullmatch(
        r"image_fetch;dur=[0-9.]+, total;dur=[0-9.]+", reply.headers["server-timing"]
    )
    assert found["loupe_images_refused_total{reason=image_url_refused}"] == 1


async def test_the_engines_last_word_tells_a_prompt_from_the_queue():
    """From the worker, waiting and computing the prompt look the same until the engine says."""
    metrics = WorkerMetrics()
    finish = Finish(reason=FinishReason.CANCELLED, num_output_tokens=0)

    for name in ("waiting", "begun"):
        metrics.client_left("queued", name)
    metrics.heard_late(Delta(request_id="waiting", finish=finish))
    metrics.heard_late(Delta(request_id="begun", finish=finish, admission=Admission()))
    metrics.heard_late(Delta(request_id="another", finish=finish))

    stages = {
        series.label_values[0]: series.cells[0]
        for series in metrics.slab.ledger.read()
        if series.name == "loupe_client_disconnects_total"
    }
    assert {stage: count for stage, count in stages.items() if count} == {"queued": 1, "prefill": 1}


async def test_a_missed_deadline_is_counted_where_it_was_missed(new_engine, serve):
    engine = new_engine()
    engine.holds = anyio.Event()
    async with serve(engine, request_timeout_seconds=0.5) as (client, _):
        reply = await client.post("/v1/chat", json=QUESTION)
        found = await figures(client)

    assert reply.status_code == 504
    assert found["loupe_deadline_missed_total{stage=decode}"] == 1


async def test_openmetrics_is_given_to_whoever_accepts_it(fresh):
    client, _, _ = fresh

    reply = await client.get("/metrics", headers={"accept": "application/openmetrics-text"})

    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    assert {family.name for family in parse_openmetrics(reply.text)} > {"loupe_requests"}


async def test_vllms_names_are_shown_on_request(new_engine, serve):
    settings = MetricsSettings(vllm_metric_names=True)
    async with serve(new_engine(), metrics=settings) as (client, _):
        await client.post("/v1/chat", json=QUESTION)
        found = await figures(client)

    labels = "{engine=0}{model_name=null}"
    assert found[f"vllm:generation_tokens_total{labels}"] == found["loupe_output_tokens_total"]
    assert found[f"vllm:time_to_first_token_seconds_count{labels}"] == 1
    assert found["vllm:request_success_total{engine=0}{finished_reason=stop}{model_name=null}"] == 1


@pytest.mark.parametrize("by_key", [False, True])
async def test_keys_are_told_apart_only_on_request(new_engine, serve, tmp_path, by_key):
    path = tmp_path / "keys.toml"
    key = add_key(path, "alice", tenant="team-a", is_admin=False)
    async with serve(
        new_engine(),
        access=AccessSettings(api_keys=str(path), open_metrics=True),
        metrics=MetricsSettings(metrics_by_key=by_key),
    ) as (client, _):
        headers = {"authorization": f"Bearer {key}"}
        reply = await client.post("/v1/chat", json=QUESTION, headers=headers)
        refused = await client.post("/v1/chat", json=QUESTION)
        found = await figures(client)

    assert (reply.status_code, refused.status_code) == (200, 401)
    assert found["loupe_requests_total{route=/v1/chat}{status=401}"] == 1
    assert ("loupe_key_requests_total{key=alice}{status=200}" in found) is by_key
    assert any("alice" in name for name in found) is by_key
    assert not any(key in name for name in found)
