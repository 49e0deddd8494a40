"""The OpenAI dialect's streams: their chunks, their one end, and what becomes of errors."""

import json

import anyio
import pytest

from service.errors import EngineUnavailable, Overloaded

PATH = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


@pytest.fixture
def question(model) -> dict:
    messages = [{"role": "user", "content": "What is this?"}]
    return {"model": model.name, "messages": messages, "stream": True}


def chunks_of(text: str) -> list[dict]:
    """Read a stream that ends as it must; give its chunks."""
    *blocks, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [
        json.loads(block.removeprefix("data: ")) for block in blocks if not block.startswith(":")
    ]


def deltas_of(chunks: list[dict], index: int = 0) -> list[dict]:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return [choice["delta"] for choice in choices if choice["index"] == index]


async def test_stream_is_role_deltas_and_one_finish(service, question):
    response = await service.client.post(PATH, json=question)

    chunks = chunks_of(response.text)
    (last,) = chunks[-1]["choices"]
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert deltas_of(chunks) == [
        {"role": "assistant", "content": ""},
        {"content": "A red"},
        {"content": " circle."},
        {},
    ]
    assert last == {
        "index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop", "stop_reason": None,
    }  # fmt: skip
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert reasons == [None, None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert len({(chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


async def test_usage_is_one_more_chunk_where_it_is_asked_for(service, question):
    asked = question | {"stream_options": {"include_usage": True}}
    chunks = chunks_of((await service.client.post(PATH, json=asked)).text)
    whole = (await service.client.post(PATH, json=question | {"stream": False})).json()

    *others, last = chunks
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in others)


async def test_stream_and_whole_reply_say_the_same(service, question):
    service.engine.pieces = ["<think>\nHm.", "\n</think>\n\nSo", ": ", CALL[:15], CALL[15:]]
    question["tools"] = [TOOL]

    stream = chunks_of((await service.client.post(PATH, json=question)).text)
    whole = (await service.client.post(PATH, json=question | {"stream": False})).json()

    message = whole["choices"][0]["message"]
    deltas = deltas_of(stream)
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    for name in ("content", "reasoning_content"):
        assert "".join(delta.get(name) or "" for delta in deltas) == message[name]
    (call,) = message["tool_calls"]
    assert calls[0]["function"] == {"name": "f", "arguments": ""}
    assert (calls[0]["index"], calls[0]["type"]) == (0, "function")
    assert calls[0]["id"].startswith("call_")
    assert all("id" not in later and "name" not in later["function"] for later in calls[1:])
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert arguments == call["function"]["arguments"] == '{"a": 1}'
    assert stream[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_every_answer_has_a_role_and_a_finish_of_its_own(service, question):
    chunks = chunks_of((await service.client.post(PATH, json=question | {"n": 2})).text)

    for index in (0, 1):
        deltas = deltas_of(chunks, index)
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas) == "A red circle."
        assert deltas[-1] == {}


async def test_logprobs_come_with_their_tokens(service, question):
    asked = question | {"logprobs": True, "stop": ["circle!"]}  # which holds text back
    chunks = chunks_of((await service.client.post(PATH, json=asked)).text)

    told = [
        token
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["logprobs"]
        for token in choice["logprobs"]["content"]
    ]
    assert b"".join(bytes(token["bytes"]) for token in told) == b"A red circle."
    assert all(token["top_logprobs"] == [] for token in told)


async def test_text_of_line_breaks_and_markup_stays_one_event(service, question):
    service.engine.pieces = ["a\n\ndata: {}\r\n", "</script>\x1b[31m"]

    chunks = chunks_of((await service.client.post(PATH, json=question)).text)

    text = "".join(delta.get("content", "") for delta in deltas_of(chunks))
    assert text == "".join(service.engine.pieces)


async def test_error_before_the_first_chunk_is_an_ordinary_reply(service, question):
    service.engine.pieces = []
    service.engine.error = Overloaded(2.5)

    response = await service.client.post(PATH, json=question)

    assert response.status_code == 503
    assert response.json()["error"]["type"] == "overloaded_error"
    assert response.headers["retry-after-ms"] == "2500"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        pytest.param(EngineUnavailable("engine_failed", "Failed."), "engine_failed", id="known"),
        pytest.param(ValueError("secret"), "internal_error", id="unknown"),
    ],
)
async def test_error_after_the_first_chunk_is_an_event_and_the_end(service, question, error, code):
    service.engine.error = error

    response = await service.client.post(PATH, json=question)

    *chunks, end = chunks_of(response.text)
    assert response.status_code == 200
    assert end["error"]["code"] == code
    assert set(end["error"]) == {"message", "type", "param", "code"}
    assert all(choice["finish_reason"] is None for chunk in chunks for choice in chunk["choices"])
    assert "secret" not in response.text


async def test_stream_that_fails_tells_what_it_took_until_then(service, question):
    service.engine.error = EngineUnavailable("engine_failed", "Failed.")
    asked = question | {"stream_options": {"include_usage": True}}

    *_, told, error = chunks_of((await service.client.post(PATH, json=asked)).text)

    assert error["error"]["code"] == "engine_failed"
    assert told["choices"] == []
    assert told["usage"]["prompt_tokens"] == len(service.engine.requests[0].prompt_token_ids)
    assert told["usage"]["completion_tokens"] > 0


async def test_deadline_in_a_stream_is_its_last_event(new_engine, serve, question):
    engine = new_engine()
    engine.holds = anyio.Event()
    async with serve(engine, request_timeout_seconds=0.3) as (client, _):
        response = await client.post(PATH, json=question)

    *_, end = chunks_of(response.text)
    assert end["error"]["code"] == "deadline_exceeded"
    assert end["error"]["type"] == "timeout_error"
    assert engine.cancelled == [engine.requests[0].request_id]


@pytest.mark.parametrize("streams", [True, False])
async def test_client_that_leaves_ends_its_request(service, question, streams, eventually):
    service.engine.holds = anyio.Event()

    async with anyio.create_task_group() as tasks:

        async def ask() -> None:
            await service.client.post(PATH, json=question | {"stream": streams})

        tasks.start_soon(ask)
        await eventually(lambda: service.engine.requests)
        tasks.cancel_scope.cancel()

    await eventually(lambda: service.engine.cancelled)
    assert service.engine.unfinished == set()
