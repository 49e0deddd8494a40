"""How the OpenAI client library takes what goes wrong, and what is not in OpenAI's own replies."""

import anyio
import openai
import pytest
from openai import AsyncOpenAI
from openai.types import CompletionUsage
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from pydantic import BaseModel

from service.errors import EngineUnavailable, Overloaded

MESSAGES = [{"role": "user", "content": "Hi"}]
CALL = '<tool_call>\n{"name": "paint", "arguments": {"colour": "red"}}\n</tool_call>'


class Paint(BaseModel):
    colour: str


PAINT = openai.pydantic_function_tool(Paint, name="paint")


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


async def test_files_are_kept_and_shown_by_the_library_s_own_calls(service, model, client, picture):
    kept = await client.files.create(
        file=("a.png", picture),
        purpose="vision",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    listed = [file.id async for file in client.files.list(purpose="vision")]
    content = await client.files.content(kept.id)
    parts = [
        {"type": "image_url", "image_url": {"url": kept.id}},
        {"type": "file", "file": {"file_id": kept.id}},
    ]
    await client.chat.completions.create(
        model=model.name, messages=[{"role": "user", "content": parts}]
    )
    deleted = await client.files.delete(kept.id)
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(kept.id)

    first, second = service.engine.requests[0].visions
    assert listed == [kept.id]
    assert (kept.expires_at - kept.created_at, content.content) == (3600, picture)
    assert first.content_hash == second.content_hash
    assert deleted.deleted


# The library warns of its own, where it writes what it has parsed.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
async def test_a_parsed_answer_is_taken_back_as_it_is(service, model, client):
    service.engine.pieces = ['{"colour": "red"}']
    parsed = await client.chat.completions.parse(
        model=model.name, messages=MESSAGES, response_format=Paint
    )
    message = parsed.choices[0].message

    taken = await client.chat.completions.with_raw_response.create(
        model=model.name, messages=[*MESSAGES, message, *MESSAGES]
    )

    assert isinstance(message.parsed, Paint)
    assert taken.headers["x-ignored-params"] == "messages.parsed"


@pytest.mark.parametrize("streams", [False, True])
async def test_a_parsed_call_is_taken_back_as_it_is(service, model, client, streams):
    service.engine.pieces = [CALL]
    asked = {"model": model.name, "messages": MESSAGES, "tools": [PAINT]}
    if streams:
        async with client.chat.completions.stream(**asked) as stream:
            parsed = await stream.get_final_completion()
    else:
        parsed = await client.chat.completions.parse(**asked)
    message = parsed.choices[0].message
    (call,) = message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "Painted."}

    await client.chat.completions.create(**asked | {"messages": [*MESSAGES, message, result]})

    assert isinstance(call.function.parsed_arguments, Paint)
    assert len(service.engine.requests) == 2


@pytest.mark.parametrize("name", sorted(CompletionCreateParamsStreaming.__annotations__))
async def test_every_field_of_the_library_is_known_here(service, model, name):
    asked = {"model": model.name, "messages": MESSAGES} | {name: {"nonsense": 1}}

    response = await service.client.post("/v1/chat/completions", json=asked)

    error = response.json().get("error", {})
    assert (error.get("code"), error.get("param")) != ("field_unknown", name)
