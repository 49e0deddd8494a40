"""The OpenAI client library against the whole service: what its users write works unchanged."""

import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.lib.streaming.chat import ContentDeltaEvent
from pydantic import BaseModel

MODEL = "demo"
DESCRIBE = "What is in this image?"
PAINT = {
    "type": "function",
    "function": {
        "name": "paint",
        "description": "Paint a shape.",
        "parameters": {
            "type": "object",
            "properties": {
                "color": {"type": "string", "enum": ["red", "blue"]},
                "filled": {"type": "boolean"},
            },
            "required": ["color", "filled"],
            "additionalProperties": False,
        },
    },
}


class Shape(BaseModel):
    """What a picture shows, in words that the schema limits."""

    color: Literal["red", "green", "blue"]
    shape: Literal["circle", "square"]
    filled: bool


@pytest.fixture
def openai_client(service) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(service) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="x", max_retries=0) as client:
        yield client


def say(text: str, *pictures: bytes) -> list[dict]:
    """Make the messages of one question about pictures."""
    urls = [f"data:image/png;base64,{base64.b64encode(each).decode()}" for each in pictures]
    shown = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def test_a_picture_is_described(openai_client, picture):
    completion = openai_client.chat.completions.create(
        model=MODEL, messages=say(DESCRIBE, picture("red", "circle")), temperature=0
    )

    (choice,) = completion.choices
    assert (choice.message.content, choice.finish_reason) == ("a red circle", "stop")
    assert completion.usage.prompt_tokens_details.cached_tokens >= 0
    assert completion.usage.prompt_tokens_details.image_tokens > 0
    assert completion.usage.completion_tokens_details.reasoning_tokens == 0


def test_a_conversation_goes_on_behind_its_own_answer(openai_client, picture):
    messages = say(DESCRIBE, picture("red", "circle"))
    first = openai_client.chat.completions.create(model=MODEL, messages=messages, temperature=0)

    second = openai_client.chat.completions.create(
        model=MODEL,
        messages=[*messages, first.choices[0].message, *say(DESCRIBE, picture("blue", "square"))],
        temperature=0,
    )

    assert second.choices[0].finish_reason == "stop"
    assert second.usage.prompt_tokens > 2 * 40


def test_a_stream_brings_the_same_in_pieces(openai_client, counted_to_30):
    with openai_client.chat.completions.create(
        model=MODEL,
        messages=say("Count from 1 to 30"),
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)

    *answering, last = chunks
    text = "".join(chunk.choices[0].delta.content or "" for chunk in answering)
    assert text == counted_to_30
    assert len(answering) > 3
    assert answering[-1].choices[0].finish_reason == "stop"
    assert last.usage.completion_tokens > 10


async def test_the_asynchronous_client_is_answered(async_client, picture, counted_to_30):
    completion = await async_client.chat.completions.create(
        model=MODEL, messages=say(DESCRIBE, picture("blue", "square")), temperature=0
    )
    stream = await async_client.chat.completions.create(
        model=MODEL, messages=say("Count from 1 to 30"), temperature=0, stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]

    assert completion.choices[0].message.content == "a blue square"
    assert "".join(pieces) == counted_to_30


def test_the_stream_helper_gathers_the_answer(openai_client, counted_to_30):
    with openai_client.chat.completions.stream(
        model=MODEL, messages=say("Count from 1 to 30"), temperature=0
    ) as stream:
        pieces = [event.delta for event in stream if isinstance(event, ContentDeltaEvent)]
        final = stream.get_final_completion()

    assert "".join(pieces) == final.choices[0].message.content == counted_to_30


def test_an_answer_is_parsed_into_a_model_of_pydantic(openai_client, picture):
    completion = openai_client.chat.completions.parse(
        model=MODEL,
        messages=say(DESCRIBE, picture("red", "circle")),
        response_format=Shape,
        temperature=0,
    )

    assert isinstance(completion.choices[0].message.parsed, Shape)


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param("required", id="required"),
        pytest.param({"type": "function", "function": {"name": "paint"}}, id="named"),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
def test_a_demanded_call_keeps_to_the_function_s_schema(openai_client, choice, streams):
    asked = {
        "model": MODEL,
        "messages": say("Paint something."),
        "tools": [PAINT],
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "temperature": 0,
    }
    if streams:
        with openai_client.chat.completions.stream(**asked) as stream:
            completion = stream.get_final_completion()
    else:
        completion = openai_client.chat.completions.create(**asked)

    message = completion.choices[0].message
    (call,) = message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert completion.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "paint"
    assert set(arguments) == {"color", "filled"}
    assert (arguments["color"] in ("red", "blue"), type(arguments["filled"])) == (True, bool)


def test_a_strict_call_is_parsed_into_a_model_of_pydantic(openai_client):
    completion = openai_client.chat.completions.parse(
        model=MODEL,
        messages=say("Paint something."),
        tools=[openai.pydantic_function_tool(Shape, name="paint")],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
    )

    (call,) = completion.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Shape)


def test_a_call_s_result_is_taken(openai_client):
    messages = say("Paint something.")
    called = openai_client.chat.completions.create(
        model=MODEL,
        messages=messages,
        tools=[PAINT],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    message = called.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Painted."}

    answer = openai_client.chat.completions.create(
        model=MODEL, messages=[*messages, message, result], tools=[PAINT], max_tokens=5
    )

    assert answer.choices[0].finish_reason in ("stop", "length")


def test_several_answers_and_their_probabilities(openai_client, picture):
    completion = openai_client.chat.completions.create(
        model=MODEL,
        messages=say(DESCRIBE, picture("red", "circle")),
        temperature=0,
        n=2,
        logprobs=True,
        top_logprobs=3,
    )

    first, second = completion.choices
    assert (first.index, second.index) == (0, 1)
    assert first.message.content == second.message.content == "a red circle"
    told = first.logprobs.content
    assert b"".join(bytes(token.bytes) for token in told) == b"a red circle"
    for token in told:
        assert token.logprob <= 0
        assert token.top_logprobs[0].token == token.token  # the likeliest: temperature is 0
        assert len(token.top_logprobs) == 3


def test_models_are_listed(openai_client):
    (model,) = openai_client.models.list().data

    assert model.id == MODEL
    assert openai_client.models.retrieve(MODEL).created == model.created > 0


@pytest.mark.parametrize(
    ("changes", "error", "code", "param"),
    [
        pytest.param(
            {"model": "gpt"}, openai.NotFoundError, "model_not_found", "model", id="model"
        ),
        pytest.param(
            {"temperature": 3}, openai.BadRequestError, "value_out_of_range", "temperature",
            id="bounds",
        ),
        pytest.param(
            {"audio": {"voice": "alloy", "format": "mp3"}}, openai.BadRequestError,
            "param_unsupported", "audio", id="unsupported",
        ),
        pytest.param(
            {"max_tokens": 900_000}, openai.BadRequestError, "context_length_exceeded", None,
            id="context",
        ),
        pytest.param(
            {"extra_headers": {"content-encoding": "gzip"}}, openai.APIStatusError,
            "content_encoding_unsupported", None, id="encoding",
        ),
    ],
)  # fmt: skip
def test_errors_are_the_library_s_own(openai_client, changes, error, code, param):
    asked = {"model": MODEL, "messages": say("Hi")} | changes

    with pytest.raises(error) as raised:
        openai_client.chat.completions.create(**asked)

    assert (raised.value.code, raised.value.param) == (code, param)
    assert raised.value.request_id
