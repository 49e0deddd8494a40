"""The OpenAI dialect's event stream: chunks in its order, and `[DONE]` in every case."""

from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from typing import assert_never

import msgspec
from msgspec import UNSET

from service.errors import ServiceError
from service.exchange import Exchange
from service.http.error_reply import error_envelope
from service.routes.openai_answer import (
    AnswerEvent,
    AnswerReader,
    ReasoningText,
    choice_logprobs,
    completion_usage,
    finish_reason,
    stop_reason,
)
from service.routes.openai_reply import (
    ChoiceDelta,
    ChunkChoice,
    CompletionChunk,
    DeltaFunction,
    DeltaToolCall,
)
from service.text.answer import AnswerDelta
from service.text.tool_calls import CallArguments, CallStarted, ContentText

_DONE = b"data: [DONE]\n\n"

_encoder = msgspec.json.Encoder()


class ChunkStream:
    """One request's events.

    template: what all chunks share; with a usage of None, the tokens are told at the end.
    functions: the names of those that may be called.
    """

    def __init__(
        self, exchange: Exchange, template: CompletionChunk, functions: Collection[str]
    ) -> None:
        self._exchange = exchange
        self._template = template
        self._functions = functions
        self._readers: dict[int, AnswerReader] = {}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Give the events, several at a time where they come together."""
        async with aclosing(self._exchange.deltas()) as deltas:
            async for delta in deltas:
                if events := self._read(delta):
                    yield events
        yield self._usage() + _DONE

    def error_events(self, error: ServiceError) -> bytes:
        """End a stream that has begun with an error, and with what it took until then."""
        usage = self._usage() if self._readers else b""
        return usage + b"data: " + _encoder.encode(error_envelope(error)) + b"\n\n" + _DONE

    def _usage(self) -> bytes:
        if self._template.usage is UNSET:
            return b""
        num_reasoning_tokens = sum(reader.num_reasoning_tokens for reader in self._readers.values())
        usage = completion_usage(self._exchange.usage, num_reasoning_tokens)
        return _event(msgspec.structs.replace(self._template, usage=usage))

    def _read(self, delta: AnswerDelta) -> bytes:
        chunks: list[ChunkChoice] = []
        reader = self._readers.get(delta.index)
        if reader is None:
            opens_reasoning = self._exchange.prepared.prompt.opens_reasoning
            reader = AnswerReader(self._functions, opens_reasoning=opens_reasoning)
            self._readers[delta.index] = reader
            chunks.append(_choice(delta.index, ChoiceDelta(role="assistant", content="")))
        pieces = [_choice(delta.index, _piece(event)) for event in reader.read(delta)]
        logprobs = choice_logprobs(delta.logprobs, self._exchange.prepared.vocabulary)
        if logprobs is not None:
            # They belong to the tokens, whose text may still be held back.
            first = pieces[0] if pieces else _choice(delta.index, ChoiceDelta(content=""))
            pieces[:1] = [msgspec.structs.replace(first, logprobs=logprobs)]
        chunks += pieces
        if delta.finish is not None:
            chunks.append(
                ChunkChoice(
                    index=delta.index,
                    delta=ChoiceDelta(),
                    finish_reason=finish_reason(delta.finish, has_called=reader.has_called),
                    stop_reason=stop_reason(delta.finish),
                )
            )
        return b"".join(
            _event(msgspec.structs.replace(self._template, choices=[chunk])) for chunk in chunks
        )


def _choice(index: int, delta: ChoiceDelta) -> ChunkChoice:
    return ChunkChoice(index=index, delta=delta)


def _piece(event: AnswerEvent) -> ChoiceDelta:
    match event:
        case ReasoningText(text):
            return ChoiceDelta(reasoning_content=text)
        case ContentText(text):
            return ChoiceDelta(content=text)
        case CallStarted(index, call_id, name):
            function = DeltaFunction(name=name, arguments="")
            call = DeltaToolCall(index=index, id=call_id, type="function", function=function)
        case CallArguments(index, text):
            call = DeltaToolCall(index=index, function=DeltaFunction(arguments=text))
        case _:
            assert_never(event)
    return ChoiceDelta(tool_calls=[call])


def _event(chunk: CompletionChunk) -> bytes:
    return b"data: " + _encoder.encode(chunk) + b"\n\n"
