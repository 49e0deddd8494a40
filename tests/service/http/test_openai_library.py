"""How the OpenAI client library takes what goes wrong, and what is not in OpenAI's own replies."""

import anyio
import openai
import pytest
from openai import AsyncOpenAI
from openai.types import CompletionUsage
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming

from service.errors import EngineUnavailable, Overloaded

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def client(service):
    url = f"http://127.0.0.1:{service.port}/v1"
    async with AsyncOpenAI(base_url=url, api_key="unused", max_retries=5) as client:
        yield client


def num_requests(log) -> int:
    return sum(str(event["event"]).startswith("HTTP request") for event in log)


async def test_error_in_a_stream_is_raised_behind_the_text(service, model, client):
    service.engine.error = EngineUnavailable("engine_failed", "The engine failed.")

    stream = await client.chat.completions.create(model=model.name, messages=MESSAGES, stream=True)
    role, *texts = [await anext(stream) for _ in range(3)]
    with pytest.raises(openai.APIError) as raised:
        await anext(stream)

    assert role.choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in texts] == ["A red", " circle."]
    assert (raised.value.code, raised.value.type) == ("engine_failed", "overloaded_error")


async def test_tokens_of_an_answer_that_is_too_late_are_in_the_errors_response(
    service, model, client
):
    service.engine.holds = anyio.Event()

    with pytest.raises(openai.InternalServerError) as raised:
        await client.with_options(max_retries=0).chat.completions.create(
            model=model.name, messages=MESSAGES, extra_body={"deadline_ms": 250}
        )

    usage = CompletionUsage.model_validate(raised.value.response.json()["usage"])
    assert (raised.value.status_code, raised.value.code) == (504, "deadline_exceeded")
    assert usage.prompt_tokens == len(service.engine.requests[0].prompt_token_ids)
    assert usage.completion_tokens > 0


async def test_a_stream_that_is_too_late_counts_its_tokens_before_the_error(service, model, client):
    service.engine.holds = anyio.Event()

    stream = await client.chat.completions.create(
        model=model.name,
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"deadline_ms": 300},
    )
    chunks = []

    async def read() -> None:
        async for chunk in stream:
            chunks.append(chunk)  # noqa: PERF401 - a comprehension would lose them

    with pytest.raises(openai.APIError) as raised:
        await read()

    assert raised.value.code == "deadline_exceeded"
    assert chunks[-1].usage.prompt_tokens == len(service.engine.requests[0].prompt_token_ids)
    assert chunks[-1].usage.completion_tokens > 0


async def test_full_service_is_asked_again_when_it_says(service, model, client, eventually):
    service.engine.pieces, pieces = [], service.engine.pieces
    service.engine.error = Overloaded(0.05)

    async def ask() -> None:
        completion = await client.chat.completions.create(model=model.name, messages=MESSAGES)
        answers.append(completion.choices[0].message.content)

    answers = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await eventually(lambda: service.engine.requests)
        service.engine.pieces, service.engine.error = pieces, None

    assert answers == ["A red circle."]
    assert len(service.engine.requests) > 1


async def test_refused_request_is_not_asked_again(model, client, log, eventually):
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model=model.name, messages=[])

    await eventually(lambda: num_requests(log))
    assert num_requests(log) == 1


async def test_reasoning_and_stop_string_are_extra_fields(service, model, client):
    service.engine.pieces = ["<think>\nHm.\n</think>\n\n", "A red", " circle."]

    completion = await client.chat.completions.create(
        model=model.name, messages=MESSAGES, stop=" circle"
    )

    (choice,) = completion.choices
    assert choice.message.reasoning_content == "Hm."
    assert (choice.message.content, choice.stop_reason) == ("A red", " circle")


async def test_extensions_are_sent_in_the_extra_body(service, model, client):
    await client.chat.completions.create(
        model=model.name, messages=MESSAGES, extra_body={"top_k": 5, "min_p": 0.5}
    )

    sampling = service.engine.requests[0].sampling
    assert (sampling.top_k, sampling.min_p) == (5, 0.5)


@pytest.mark.parametrize("name", sorted(CompletionCreateParamsStreaming.__annotations__))
async def test_every_field_of_the_library_is_known_here(service, model, name):
    asked = {"model": model.name, "messages": MESSAGES} | {name: {"nonsense": 1}}

    response = await service.client.post("/v1/chat/completions", json=asked)

    error = response.json().get("error", {})
    assert (error.get("code"), error.get("param")) != ("field_unknown", name)
