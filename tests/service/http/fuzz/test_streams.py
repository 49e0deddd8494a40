"""Streams of an engine that does anything at all: one end each, and JSON up to it.

`pytest --hypothesis-profile=thorough tests/service/http/fuzz` searches for longer.
"""

import json
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.protocol import Admission, Delta, Finish, FinishReason, Generate
from service.error_codes import ERROR_CODES
from service.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    InternalError,
    OutOfMemory,
    Overloaded,
    RateLimited,
    RequestInvalid,
)

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LEAVING = settings(RELAXED, max_examples=settings().max_examples // 5)
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
PIECES = [
    "A red", " circle", ".", "é", "\U0001f642", "\r\n\r\n", "\n", "data: [DONE]\n\n", "[DONE]",
    "event: x", ": ", "\x00", "\u2028", "</script>", '{"error": ', "<tool_call>", "</tool_call>",
    '<tool_call>\n{"name": "f", "arguments": {"a": [1, {"b": "}"}]}}\n</tool_call>',
    '\n{"name": "f", ', '"arguments": {', '"a": 1', "}}", "<think>", "</think>", "\n\n", "<tool_",
    '{"name": "nobody", "arguments": {}}', "STOP", "ST", "OP",
]  # fmt: skip
ERRORS = [
    EngineUnavailable("engine_lost", "The engine was lost."),
    EngineUnavailable("engine_failed", "The engine failed."),
    OutOfMemory(),
    Overloaded(1.5),
    RateLimited("Used up.", 7.0),
    DeadlineExceeded(),
    InternalError(),
    RequestInvalid("grammar_too_complex", "The output schema is too complex."),
    RuntimeError("a fault of ours: /etc/canary"),
]
REASONS = [FinishReason.STOP, FinishReason.LENGTH, FinishReason.DEADLINE]


@st.composite
def scripts(draw: st.DrawFn, num_answers: int) -> list[Any]:
    """Draw whose turn it is and what comes, how the answers end, and the error instead."""
    turns = st.tuples(
        st.integers(0, num_answers - 1),
        st.lists(st.sampled_from(PIECES) | st.integers(0, 500), max_size=3),
    )
    return [
        draw(st.lists(turns, max_size=8)),
        draw(st.lists(st.sampled_from(REASONS[:2]), min_size=num_answers, max_size=num_answers)),
        draw(st.none() | st.sampled_from(ERRORS)),
        draw(st.sampled_from(REASONS)),
    ]


class ActingEngine:
    """Acts a script: see ScriptedEngine for what it stands in for."""

    def __init__(self, engine: Any, drawn: list[Any]) -> None:
        turns, self._endings, self._error, last = drawn
        self._endings = [*self._endings[:-1], last]
        encode = engine._encode
        self._steps = [
            (index, [token for piece in pieces for token in _tokens(piece, encode)])
            for index, pieces in turns
        ]
        self._engine = engine

    async def generate(self, request: Generate) -> AsyncGenerator[Delta, None]:
        engine, admitted = self._engine, set()
        engine.unfinished.add(request.request_id)
        for index, token_ids in self._steps:
            if index < request.num_sequences:
                admission = None if index in admitted else ADMISSION
                admitted.add(index)
                yield Delta(
                    request_id=request.request_id,
                    index=index,
                    token_ids=token_ids,
                    admission=admission,
                )
                await anyio.lowlevel.checkpoint()
        if engine.holds is not None:
            await engine.holds.wait()
        engine.unfinished.discard(request.request_id)
        if self._error is not None:
            raise self._error
        for index in range(request.num_sequences):
            yield Delta(
                request_id=request.request_id,
                index=index,
                admission=None if index in admitted else ADMISSION,
                finish=Finish(reason=self._endings[index], detail="", num_output_tokens=1),
            )


ADMISSION = Admission(num_cached_tokens=0, queue_seconds=0, vision_seconds=0, prefill_seconds=0)


def _tokens(piece: str | int, encode: Any) -> list[int]:
    return [piece] if isinstance(piece, int) else encode(piece)


@pytest.fixture
def act(service: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the service's engine act a script."""

    def begin(drawn: list[Any]) -> None:
        service.engine.reset()
        monkeypatch.setattr(
            service.engine, "generate", ActingEngine(service.engine, drawn).generate, raising=False
        )

    return begin


def frames(text: str) -> list[str]:
    assert text.endswith("\n\n")
    pieces = text.removesuffix("\n\n").split("\n\n")
    assert all(piece.startswith(("data: ", ":")) for piece in pieces)
    assert all("\n" not in piece and "\r" not in piece for piece in pieces)
    return [piece.removeprefix("data: ") for piece in pieces if piece.startswith("data: ")]


def check_refusal(response: Any) -> None:
    reply = response.json()
    assert reply.get("error", reply)["code"] in ERROR_CODES
    assert "canary" not in response.text


@RELAXED
@given(drawn=scripts(1), stop=st.none() | st.just("STOP"))
async def test_a_native_stream_has_one_end_and_nothing_behind_it(service, act, drawn, stop):
    act(drawn)
    body = {"input_type": "text_only", "text": "Hi"} | ({"stop": stop} if stop else {})
    response = await service.client.post("/v1/chat/stream", json=body)

    if response.status_code != 200:
        return check_refusal(response)
    *chunks, last = [json.loads(frame) for frame in frames(response.text)]
    assert all(set(chunk) == {"chunk", "done"} and not chunk["done"] for chunk in chunks)
    assert last["done"] is True
    assert ("usage" in last and "finish_reason" in last) or last["code"] in ERROR_CODES
    assert "canary" not in response.text
    assert service.engine.unfinished == set()
    return None


@RELAXED
@given(drawn=scripts(3), fields=st.fixed_dictionaries(
    {"n": st.integers(1, 3)},
    optional={
        "stop": st.just("STOP"),
        "tools": st.just([FUNCTION]),
        "stream_options": st.just({"include_usage": True}),
    },
))  # fmt: skip
async def test_an_openai_stream_has_one_end_and_says_what_the_whole_reply_says(
    service, act, model, drawn, fields
):
    body = {"model": model.name, "messages": [{"role": "user", "content": "Hi"}]} | fields
    act(drawn)
    response = await service.client.post("/v1/chat/completions", json=body | {"stream": True})
    act(drawn)
    whole = await service.client.post(
        "/v1/chat/completions",
        json={name: value for name, value in body.items() if name != "stream_options"},
    )

    if response.status_code != 200:
        assert whole.status_code == response.status_code
        return check_refusal(response)
    *events, last = frames(response.text)
    assert last == "[DONE]"
    assert "[DONE]" not in events
    chunks = [json.loads(event) for event in events]
    failed = [chunk for chunk in chunks if "error" in chunk]
    assert failed in ([], chunks[-1:])
    assert (whole.status_code == 200) == (failed == [])
    assert "canary" not in response.text
    if failed:
        assert failed[0]["error"]["code"] in ERROR_CODES
        check_refusal(whole)
    said = Said([chunk for chunk in chunks if "error" not in chunk], fields["n"])
    if not failed:
        assert said.whole() == [told(choice) for choice in whole.json()["choices"]]
        assert said.has_usage == ("stream_options" in fields)
    assert service.engine.unfinished == set()
    return None


class Said:
    """What a stream's chunks say together; the rules of their order are checked on the way."""

    def __init__(self, chunks: list[dict[str, Any]], num_answers: int) -> None:
        self._answers = [_Answer() for _ in range(num_answers)]
        self.has_usage = False
        assert len({chunk["id"] for chunk in chunks}) <= 1
        for chunk in chunks:
            assert not self.has_usage, "the usage is the last of all"
            if not chunk["choices"]:
                assert chunk["usage"]["prompt_tokens"] > 0
                self.has_usage = True
            for choice in chunk["choices"]:
                self._answers[choice["index"]].take(choice)

    def whole(self) -> list[tuple[Any, ...]]:
        return [answer.whole() for answer in self._answers]


class _Answer:
    def __init__(self) -> None:
        self._content = ""
        self._reasoning = ""
        self._calls: list[dict[str, str]] = []
        self._finish: str | None = None
        self._has_role = False

    def take(self, choice: dict[str, Any]) -> None:
        assert self._finish is None, "nothing comes behind an answer's end"
        delta = choice["delta"]
        assert ("role" in delta) != self._has_role, "the role comes first, and once"
        self._has_role = True
        self._content += delta.get("content") or ""
        self._reasoning += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls") or []:
            if call["index"] == len(self._calls):
                self._calls.append({"name": call["function"]["name"], "arguments": ""})
                assert call["id"]
            else:
                assert call["index"] == len(self._calls) - 1
                assert "id" not in call
            self._calls[-1]["arguments"] += call["function"].get("arguments") or ""
        self._finish = choice["finish_reason"]

    def whole(self) -> tuple[Any, ...]:
        calls = [(call["name"], call["arguments"]) for call in self._calls]
        return (self._content, self._reasoning, calls, self._finish)


def told(choice: dict[str, Any]) -> tuple[Any, ...]:
    message = choice["message"]
    calls = [call["function"] for call in message.get("tool_calls") or []]
    for call in calls:
        json.loads(call["arguments"])
    return (
        message["content"] or "",
        message.get("reasoning_content") or "",
        [(call["name"], call["arguments"]) for call in calls],
        choice["finish_reason"],
    )


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/stream", "/v1/chat/completions"])
@LEAVING
@given(drawn=scripts(1), num_chunks=st.integers(0, 6))
async def test_a_client_that_leaves_at_any_point_leaves_nothing_behind(
    service, act, model, eventually, path, drawn, num_chunks
):
    act(drawn)
    service.engine.holds = anyio.Event()
    body: dict[str, Any] = {"input_type": "text_only", "text": "Hi"}
    if path == "/v1/chat/completions":
        message = {"role": "user", "content": "Hi"}
        body = {"model": model.name, "messages": [message], "stream": True}

    async def read() -> None:
        async with service.client.stream("POST", path, json=body) as response:
            async for _ in response.aiter_raw(1):
                if num_chunks and response.num_bytes_downloaded > 40 * num_chunks:
                    return

    with anyio.move_on_after(0.02):
        await read()

    await eventually(lambda: service.engine.unfinished == set())
    assert (await service.client.get("/health/ready")).status_code == 200
