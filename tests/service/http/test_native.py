"""The native contract when all goes well."""

import anyio
import msgspec
import pytest

from inference.protocol import FinishReason
from service.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    InternalError,
    OutOfMemory,
    Overloaded,
)

QUESTION = {"input_type": "text_only", "text": "What is this?"}


async def test_reply_has_exactly_the_fields_of_the_contract(service):
    response = await service.client.post("/v1/chat", json=QUESTION)

    reply = response.json()
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert reply["success"] is True
    assert reply["message"] == "ok"
    assert reply["result"] == "A red circle."
    assert reply["finish_reason"] == FinishReason.STOP
    assert reply["request_id"] == response.headers["x-request-id"]
    contract = {"success", "message", "result", "usage", "request_id"}
    assert set(reply) == contract | {"timings_ms", "finish_reason"}


async def test_usage_counts_what_went_in_and_out(service, picture_text):
    response = await service.client.post(
        "/v1/chat", json={"text": "What is this?", "image_base64": picture_text}
    )

    usage = response.json()["usage"]
    (request,) = service.engine.requests
    assert usage["input_tokens"] == len(request.prompt_token_ids)
    assert usage["input_tokens"] == usage["text_tokens"] + usage["image_tokens"]
    assert usage["image_tokens"] == request.visions[0].height * request.visions[0].width // 32**2
    assert usage["cached_tokens"] == 2
    assert usage["output_tokens"] > 1
    assert usage["gpu_memory_used_gb"] == 1.5
    assert usage["inference_time_ms"] > 0


async def test_reply_and_header_tell_where_the_time_went(service, picture_text):
    question = {"text": "What is this?", "image_base64": picture_text}

    response = await service.client.post("/v1/chat", json=question)

    timings = response.json()["timings_ms"]
    header = response.headers["server-timing"].split(", ")
    engine_stages = {"queue": 20, "vision": 30, "prefill": 10, "decode": 40}
    assert list(timings) == ["image_decode", "prompt", *engine_stages, "total"]
    assert {name: timings[name] for name in engine_stages} == engine_stages
    assert timings["total"] >= timings["image_decode"] + timings["prompt"]
    assert header == [f"{name};dur={time}" for name, time in timings.items()]


async def test_stages_that_did_not_take_place_have_no_time(service):
    response = await service.client.post("/v1/chat", json=QUESTION)

    assert list(response.json()["timings_ms"]) == ["prompt", "queue", "prefill", "decode", "total"]


async def test_answer_that_a_stop_string_ended_tells_what_the_engine_did(service):
    response = await service.client.post("/v1/chat", json=QUESTION | {"stop": " circle"})

    reply = response.json()
    assert reply["usage"]["cached_tokens"] == 2
    assert (reply["timings_ms"]["queue"], reply["timings_ms"]["prefill"]) == (20, 10)
    assert reply["timings_ms"]["decode"] >= 0


async def test_defaults_are_the_contract_s(service):
    await service.client.post("/v1/chat", json=QUESTION)

    sampling = service.engine.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature) == (512, 0.7)
    assert (sampling.top_p, sampling.repetition_penalty) == (0.9, 1.1)
    assert sampling.seed is None


async def test_every_sampling_field_reaches_the_engine(service):
    chosen = {
        "max_new_tokens": 20,
        "temperature": 1,
        "top_p": 0.5,
        "top_k": 7,
        "repetition_penalty": 1.0,
        "presence_penalty": 1.5,
        "seed": 5,
    }

    await service.client.post("/v1/chat", json=QUESTION | chosen)

    sampling = service.engine.requests[0].sampling
    assert sampling.max_tokens == chosen.pop("max_new_tokens")
    assert {name: getattr(sampling, name) for name in chosen} == chosen


@pytest.mark.parametrize("stop", [" circle", ["nothing", " circle"]])
async def test_stop_string_ends_the_answer_and_is_not_part_of_it(service, stop):
    response = await service.client.post("/v1/chat", json=QUESTION | {"stop": stop})

    assert response.json()["result"] == "A red"
    assert response.json()["finish_reason"] == "stop"


async def test_image_only_asks_the_default_question(service, picture_text):
    image_only = {"input_type": "image_only", "image_base64": picture_text}
    await service.client.post("/v1/chat", json=image_only)
    await service.client.post("/v1/chat", json=image_only | {"text": "请描述这张图片"})
    await service.client.post("/v1/chat", json=image_only | {"text": "Other"})

    unasked, asked, other = (request.prompt_token_ids for request in service.engine.requests)
    assert unasked == asked
    assert unasked != other


async def test_system_text_comes_before_the_question(service):
    await service.client.post("/v1/chat", json=QUESTION)
    await service.client.post("/v1/chat", json=QUESTION | {"system": "Be brief."})

    bare, told = (request.prompt_token_ids for request in service.engine.requests)
    assert told[-len(bare) :] == bare
    assert len(told) > len(bare)


async def test_the_same_request_by_any_road_is_the_same_to_the_engine(
    service, picture, picture_text
):
    client = service.client
    text = {"text": "What is this?"}
    data_url = f"data:image/png;base64,{picture_text}"

    await client.post("/v1/chat", json=text | {"image_base64": picture_text})
    await client.post("/v1/chat", json=text | {"image_base64": data_url})
    await client.post("/v1/chat", json=text | {"image_url": data_url})
    await client.post("/v1/chat", json=text | {"images": [picture_text]})
    await client.post("/v1/chat", data=text, files={"image": ("a.png", picture)})
    await client.post("/v1/chat", data=text | {"image_base64": picture_text})
    await client.post("/v1/chat/stream", data=text, files={"image": ("b", picture, "text/html")})

    model_inputs = {
        (*request.prompt_token_ids, *(bytes(vision.pixels) for vision in request.visions))
        for request in service.engine.requests
    }
    assert len(service.engine.requests) == 7
    assert len(model_inputs) == 1


async def test_several_files_are_several_images_in_order(service, picture, other_picture):
    files = [("image", ("a", file)) for file in (picture, other_picture, picture)]

    response = await service.client.post("/v1/chat", data={"text": "Compare."}, files=files)

    assert response.status_code == 200
    hashes = [vision.content_hash for vision in service.engine.requests[0].visions]
    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize(
    ("fields", "with_file", "expected_text"),
    [
        pytest.param({"text": "Hi"}, False, "Hi", id="text"),
        pytest.param({"text": "Hi"}, True, "Hi", id="text-and-image"),
        pytest.param({"text": ""}, True, "请描述这张图片", id="image"),
    ],
)
async def test_form_without_input_type_means_what_it_holds(
    service, picture, fields, with_file, expected_text
):
    files = {"image": ("a.png", picture)} if with_file else {}
    explicit = {"text": expected_text, "input_type": "text_image" if with_file else "text_only"}
    await service.client.post("/v1/chat", data=fields, files=files)
    await service.client.post("/v1/chat", data=explicit, files=files)

    derived, written = (request.prompt_token_ids for request in service.engine.requests)
    assert derived == written


async def test_form_of_a_page_with_untouched_inputs_is_taken(service):
    body = (
        b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\nHello\r\n'
        b'--b\r\nContent-Disposition: form-data; name="temperature"\r\n\r\n\r\n'
        b'--b\r\nContent-Disposition: form-data; name="image"; filename=""\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n\r\n--b--\r\n"
    )

    response = await service.client.post(
        "/v1/chat", content=body, headers={"content-type": "multipart/form-data; boundary=b"}
    )

    assert response.status_code == 200
    assert service.engine.requests[0].sampling.temperature == 0.7


async def test_form_fields_are_read_as_their_types(service):
    fields = {"text": "Hi", "max_new_tokens": "20", "temperature": "0.5", "stop": ["x", "y"]}

    response = await service.client.post("/v1/chat", data=fields)

    sampling = service.engine.requests[0].sampling
    assert response.status_code == 200
    assert (sampling.max_tokens, sampling.temperature) == (20, 0.5)


async def test_file_names_are_ignored(service, picture):
    for name in ("../../etc/passwd", "a" * 10_000, "\x00.png", "名.png"):
        response = await service.client.post(
            "/v1/chat", data={"text": "Hi"}, files={"image": (name, picture)}
        )
        assert response.status_code == 200


async def test_default_token_limit_gives_way_to_the_context(service, model):
    service.engine.model = msgspec.structs.replace(model, max_model_len=100)

    by_default = await service.client.post("/v1/chat", json=QUESTION)
    asked_for = await service.client.post("/v1/chat", json=QUESTION | {"max_new_tokens": 512})

    (request,) = service.engine.requests
    assert by_default.status_code == 200
    assert request.sampling.max_tokens == 100 - len(request.prompt_token_ids)
    assert asked_for.status_code == 400
    assert asked_for.json()["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        pytest.param(Overloaded(2.5), 503, ("3", "2500", "true"), id="overloaded"),
        pytest.param(
            EngineUnavailable("engine_restarting", "Restarting."),
            503,
            ("5", "5000", "true"),
            id="engine-lost",
        ),
        pytest.param(OutOfMemory(), 503, ("1", "1000", "true"), id="out-of-memory"),
        pytest.param(DeadlineExceeded(), 504, (None, None, "true"), id="deadline"),
        pytest.param(InternalError(), 500, (None, None, "true"), id="internal"),
        pytest.param(ValueError("secret"), 500, (None, None, "true"), id="unhandled"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/stream"])
async def test_engine_errors_have_their_status_and_say_when_to_retry(
    service, path, error, status, retry
):
    service.engine.pieces = []
    service.engine.error = error

    response = await service.client.post(path, json=QUESTION)

    told = [response.headers.get(name) for name in ("retry-after", "retry-after-ms")]
    assert response.status_code == status
    assert (*told, response.headers["x-should-retry"]) == retry
    assert response.json()["success"] is False
    assert response.json()["code"] == getattr(error, "code", "internal_error")
    assert "secret" not in response.text


async def test_repeated_request_id_in_flight_is_unique_to_the_engine(service, eventually):
    service.engine.holds = anyio.Event()
    headers = {"x-request-id": "twice"}
    replies = []

    async def ask() -> None:
        replies.append(await service.client.post("/v1/chat", json=QUESTION, headers=headers))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        tasks.start_soon(ask)
        await eventually(lambda: len(service.engine.requests) == 2)
        service.engine.holds.set()

    engine_ids = [request.request_id for request in service.engine.requests]
    assert len(set(engine_ids)) == 2
    assert all(engine_id.startswith("twice") for engine_id in engine_ids)
    assert [reply.json()["request_id"] for reply in replies] == ["twice", "twice"]


async def test_deadline_passes(new_engine, serve):
    engine = new_engine()
    engine.holds = anyio.Event()
    async with serve(engine, request_timeout_seconds=0.2) as (client, _):
        response = await client.post("/v1/chat", json=QUESTION)

    assert response.status_code == 504
    assert response.json()["code"] == "deadline_exceeded"
    assert engine.cancelled == [engine.requests[0].request_id]
