"""What holds on every path: ids, envelopes, health, one log line."""

import anyio
import msgspec
import pytest

from service.access.key_file import add_key
from service.access.key_ring import KeyRing
from service.access.settings import AccessSettings

QUESTION = {"input_type": "text_only", "text": "What is this?"}


def log_lines(log) -> list[dict]:
    return [event for event in log if str(event["event"]).startswith("HTTP request")]


async def test_unknown_path_is_404_in_openai_s_shape(service):
    response = await service.client.get("/v1/canary-7f3a")

    assert response.status_code == 404
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-should-retry"] == "false"
    assert response.json() == {
        "error": {
            "message": "There is nothing at this path.",
            "type": "not_found_error",
            "param": None,
            "code": "path_not_found",
        }
    }


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/", "/v1/chat/stream", "/v1/health"])
async def test_native_paths_tell_errors_in_the_contract_s_shape(service, path):
    response = await service.client.delete(path)

    assert response.status_code == 405
    assert response.json()["success"] is False
    assert response.json()["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "accept",
    ["application/problem+json", "text/html, Application/Problem+JSON;q=0.5, */*"],
)
@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/chat", 422), ("/v1/chat/stream", 422), ("/v1/chat/completions", 400)],
)
async def test_problem_json_is_for_who_asks_for_it(service, path, status, accept):
    response = await service.client.post(path, json={"text": 1}, headers={"accept": accept})

    problem = response.json()
    assert response.status_code == problem["status"] == status
    assert response.headers["content-type"] == "application/problem+json"
    assert (problem["type"], problem["code"]) == ("about:blank", response.json()["code"])
    assert problem["title"] in ("Bad Request", "Unprocessable Content", "Unprocessable Entity")
    assert problem["request_id"] == response.headers["x-request-id"]
    assert set(problem) == {"type", "title", "status", "detail", "code", "param", "request_id"}


@pytest.mark.parametrize("accept", ["*/*", "application/json, application/problem+json;q=0.0"])
async def test_problem_json_is_not_for_who_does_not(service, accept):
    response = await service.client.get("/nowhere", headers={"accept": accept})

    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"]["code"] == "path_not_found"


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/chat"), ("PUT", "/v1/chat/stream"), ("POST", "/v1/health"), ("DELETE", "/docs")],
)
async def test_wrong_method_is_405_and_names_the_right_ones(service, method, path):
    response = await service.client.request(method, path)

    assert response.status_code == 405
    assert response.headers["allow"]
    assert method not in response.headers["allow"]


@pytest.mark.parametrize("path", ["/v1/health", "/nowhere", "/v1/chat"])
async def test_well_formed_request_id_is_kept(service, path):
    response = await service.client.get(path, headers={"x-request-id": "job-7.retry_2"})

    assert response.headers.get_list("x-request-id") == ["job-7.retry_2"]


@pytest.mark.parametrize("sent", ["", "a b", "é".encode(), "a" * 129, "a;b"])
async def test_malformed_request_id_is_replaced(service, sent):
    responses = [
        await service.client.get("/v1/health", headers={"x-request-id": sent}) for _ in range(2)
    ]

    first, second = (response.headers["x-request-id"] for response in responses)
    assert first != second
    assert len(first) == 32


async def test_request_has_one_log_line_with_the_contract_s_keys(service, log):
    response = await service.client.post(
        "/v1/chat?token=canary-7f3a", json=QUESTION, headers={"x-request-id": "my-id"}
    )

    (line,) = log_lines(log)
    assert response.status_code == 200
    assert line["event"] == "HTTP request processed"
    assert (line["method"], line["url"], line["status_code"]) == ("POST", "/v1/chat", 200)
    assert (line["client_host"], line["request_id"]) == ("127.0.0.1", "my-id")
    assert line["process_time_ms"] > 0
    assert line["finish_reason"] == "stop"
    assert line["text_tokens"] == response.json()["usage"]["text_tokens"]
    assert line["output_tokens"] == response.json()["usage"]["output_tokens"]


async def test_line_of_a_stream_is_written_at_its_end(service, log, picture, eventually):
    service.engine.holds = anyio.Event()
    async with service.client.stream(
        "POST", "/v1/chat/stream", data={"text": "Hi"}, files={"image": ("a", picture)}
    ) as response:
        events = response.aiter_raw()
        await anext(events)
        lines_before_the_end = log_lines(log)
        service.engine.holds.set()
        async for _ in events:
            pass

    await eventually(lambda: log_lines(log))
    (line,) = log_lines(log)
    assert lines_before_the_end == []
    assert (line["finish_reason"], line["num_images"]) == ("stop", 1)
    assert line["image_tokens"] > 0


async def test_log_never_holds_content(service, log, picture_text):
    secret = "canary-7f3a"
    await service.client.post("/v1/chat", json={"text": secret, "image_base64": picture_text})
    await service.client.post("/v1/chat", json=QUESTION | {"nope": secret})
    await service.client.post("/v1/chat", content=secret.encode())
    service.engine.error = ValueError("broken")
    await service.client.post("/v1/chat", json=QUESTION | {"text": secret})

    assert len(log_lines(log)) == 4
    assert secret not in repr(log)
    assert picture_text[:40] not in repr(log)


async def test_unhandled_error_is_logged_with_its_traceback_and_told_as_internal(service, log):
    service.engine.error = ZeroDivisionError("secret")

    response = await service.client.post("/v1/chat", json=QUESTION)

    (event,) = [event for event in log if event["event"] == "Unhandled error"]
    (line,) = log_lines(log)
    assert isinstance(event["exc_info"], ZeroDivisionError)
    assert event["request_id"] == response.headers["x-request-id"]
    assert response.status_code == 500
    assert (line["event"], line["error_code"]) == ("HTTP request failed", "internal_error")


async def test_health_of_a_ready_service(service):
    response = await service.client.get("/v1/health")

    health = response.json()
    assert response.status_code == 200
    assert set(health) == {"status", "model_loaded", "gpu_memory_used_gb", "uptime_seconds"}
    assert (health["status"], health["model_loaded"]) == ("healthy", True)
    assert health["gpu_memory_used_gb"] == 1.5
    assert (await service.client.get("/health/ready")).status_code == 200


async def test_lost_engine_is_unavailable_but_alive(service):
    service.engine.is_ready = False

    health = await service.client.get("/v1/health")
    ready = await service.client.get("/health/ready")
    live = await service.client.get("/health/live")

    assert (health.status_code, ready.status_code, live.status_code) == (503, 503, 200)
    assert (health.json()["status"], health.json()["model_loaded"]) == ("unavailable", False)


async def test_starting_engine_is_loading_and_refuses_with_a_time_to_retry(new_engine, serve):
    engine = new_engine()
    engine.is_ready, engine.model, engine.stats = False, None, None
    async with serve(engine) as (client, _):
        health = await client.get("/v1/health")
        chat = await client.post("/v1/chat", json=QUESTION)
        engine.is_ready, engine.model = True, new_engine().model
        answered = await client.post("/v1/chat", json=QUESTION)

    assert (health.status_code, health.json()["status"]) == (503, "loading")
    assert health.json()["gpu_memory_used_gb"] == 0
    assert (chat.status_code, chat.json()["code"]) == (503, "engine_starting")
    assert int(chat.headers["retry-after"]) >= 1
    assert answered.status_code == 200


async def test_service_without_a_usable_checkpoint_is_never_ready(new_engine, serve, log, tmp_path):
    engine = new_engine()
    engine.model = msgspec.structs.replace(engine.model, path=str(tmp_path))
    async with serve(engine) as (client, _):
        chat = await client.post("/v1/chat", json=QUESTION)
        health = await client.get("/v1/health")

    assert (chat.status_code, chat.json()["code"]) == (500, "internal_error")
    assert health.json()["status"] == "loading"
    assert str(tmp_path) not in chat.text


async def test_head_is_answered_as_get_without_a_body(service):
    answered = await service.client.get("/health/live")
    response = await service.client.head("/health/live")

    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-length"] == str(len(answered.content))
    assert (await service.client.head("/v1/chat")).status_code == 405


@pytest.mark.slow
async def test_a_chore_that_fails_begins_again(serve, new_engine, tmp_path, monkeypatch, log):
    """Here the one that follows the key file: what it no longer sees would count for ever."""
    path = tmp_path / "keys.toml"
    add_key(path, "alice", tenant=None, is_admin=False)
    refresh, failures = KeyRing.refresh, [RuntimeError("a fault of ours")]

    def fail_once(ring: KeyRing) -> None:
        if failures:
            raise failures.pop()
        refresh(ring)

    async with serve(new_engine(), access=AccessSettings(api_keys=str(path))) as (client, _):
        monkeypatch.setattr(KeyRing, "refresh", fail_once)
        headers = {"authorization": "Bearer " + add_key(path, "bob", tenant=None, is_admin=False)}
        with anyio.fail_after(10):
            status = 0
            while status != 200:
                await anyio.sleep(0.1)
                status = (await client.get("/v1/models", headers=headers)).status_code

    assert [event["event"] for event in log].count("chore_failed") == 1
