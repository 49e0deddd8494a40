"""From the engine's tokens to a request's answers: text, stop strings, true counts.

The last step before a dialect's JSON or events; knows no dialect and no wire.
"""

import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import NamedTuple, Protocol

import msgspec

from inference.protocol import Admission, Delta, Finish, FinishReason, Generate, TokenLogprob
from service.text.detokenizer import Detokenizer, StopStrings, Vocabulary
from service.text.prompt import Prompt


class Engine(Protocol):
    """Where tokens come from: all that answering a request needs of `EngineClient`."""

    def generate(self, request: Generate) -> AsyncGenerator[Delta, None]:
        """Run a request; every sequence ends with one Delta that has `finish`."""
        ...

    def cancel(self, request_id: str) -> None:
        """End a request early; synchronous and idempotent."""
        ...


class AnswerFinish(NamedTuple):
    """How one answer ended.

    stop: the stop string that ended it, or None; the text does not contain it.
    num_output_tokens: all tokens of the answer, up to and with the one that ended it.
    decode_seconds: from the first token to the end; the engine's own account, or what it took as
        seen from here when a stop string ended the answer before the engine did.
    """

    reason: FinishReason
    detail: str
    stop: str | None
    num_output_tokens: int
    decode_seconds: float


class AnswerDelta(msgspec.Struct, frozen=True):
    """What came of one answer; with `finish`, its last.

    text: may be empty: tokens within a code point or a possible stop string show later.
    logprobs: of the tokens that came, whether or not their text shows yet.
    admission: with an answer's first delta, unless it was cancelled before it ran.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob]
    admission: Admission | None
    finish: AnswerFinish | None


class Usage(NamedTuple):
    """What a request cost, over all its answers.

    num_prompt_tokens: text and image tokens together. num_cached_tokens: prompt tokens that came
    from the engine's prefix cache for every answer, so not computed for this request at all.
    num_pages: of documents; their tokens are image tokens.
    """

    num_prompt_tokens: int
    num_text_tokens: int
    num_image_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_pages: int


def count_usage(
    prompt: Prompt, admissions: Iterable[Admission], finishes: Iterable[AnswerFinish]
) -> Usage:
    """Add up a request's tokens; the prompt counts once however many answers it has."""
    return Usage(
        num_prompt_tokens=len(prompt.token_ids),
        num_text_tokens=prompt.num_text_tokens,
        num_image_tokens=prompt.num_image_tokens,
        num_cached_tokens=min((admission.num_cached_tokens for admission in admissions), default=0),
        num_output_tokens=sum(finish.num_output_tokens for finish in finishes),
        num_pages=prompt.num_pages,
    )


async def answer(
    engine: Engine, request: Generate, stops: Sequence[str], vocabulary: Vocabulary
) -> AsyncGenerator[AnswerDelta, None]:
    """Run a request and give its answers as they grow.

    Every answer ends with exactly one delta that has `finish`. When all have, or when the consumer
    stops iterating, nothing of the request goes on in the engine.

    Raises:
        ServiceError: the engine refused the request or lost it; nothing follows.
    """
    unfinished = {
        index: _Answer(index, stops, vocabulary) for index in range(request.num_sequences)
    }
    running = set(unfinished)
    try:
        async with aclosing(engine.generate(request)) as deltas:
            async for delta in deltas:
                if delta.finish is not None:
                    running.discard(delta.index)
                growing = unfinished.get(delta.index)
                if growing is None:
                    continue  # a stop string ended it; the engine went on for the others' sake
                grown = growing.grow(delta)
                if grown.finish is not None:
                    del unfinished[delta.index]
                if running and not unfinished:
                    # Before the consumer gets to work: it may take its time.
                    engine.cancel(request.request_id)
                    running.clear()
                yield grown
                if not unfinished:
                    return
    finally:
        if running:
            engine.cancel(request.request_id)


class _Answer:
    """One answer as it grows."""

    def __init__(self, index: int, stops: Sequence[str], vocabulary: Vocabulary) -> None:
        self._index = index
        self._detokenizer = Detokenizer(vocabulary)
        self._stops = StopStrings(stops) if stops else None
        self._num_tokens = 0
        self._started_at = 0.0

    def grow(self, delta: Delta) -> AnswerDelta:
        if delta.admission is not None:
            self._started_at = time.perf_counter()
        if self._stops is None:
            text = self._detokenizer.feed(delta.token_ids)
            if delta.finish is not None:
                text += self._detokenizer.finish()
            return self._delta(text, delta, delta.finish and _finish(delta.finish))
        return self._grow_to_stop(delta, self._stops)

    def _grow_to_stop(self, delta: Delta, stops: StopStrings) -> AnswerDelta:
        # Token by token, so that the count is true to the token that completed the stop string
        # however many tokens came together.
        text = ""
        for place, token_id in enumerate(delta.token_ids, start=1):
            certain, stop = stops.feed(self._detokenizer.feed([token_id]))
            text += certain
            if stop is not None:
                num_tokens = self._num_tokens + place
                finish = AnswerFinish(
                    FinishReason.STOP, "", stop, num_tokens, self._decode_seconds(delta)
                )
                return self._delta(text, delta, finish, num_tokens=place)
        self._num_tokens += len(delta.token_ids)
        if delta.finish is None:
            return self._delta(text, delta, None)
        certain, stop = stops.feed(self._detokenizer.finish())
        text += certain + stops.finish()
        finish = _finish(delta.finish)
        if stop is not None:
            finish = finish._replace(reason=FinishReason.STOP, detail="", stop=stop)
        return self._delta(text, delta, finish)

    def _decode_seconds(self, delta: Delta) -> float:
        if delta.finish is not None:
            return delta.finish.decode_seconds
        return time.perf_counter() - self._started_at

    def _delta(
        self, text: str, delta: Delta, finish: AnswerFinish | None, num_tokens: int | None = None
    ) -> AnswerDelta:
        return AnswerDelta(
            self._index,
            text,
            delta.token_ids[:num_tokens],
            delta.logprobs[:num_tokens],
            delta.admission,
            finish,
        )


def _finish(finish: Finish) -> AnswerFinish:
    return AnswerFinish(
        finish.reason, finish.detail, None, finish.num_output_tokens, finish.decode_seconds
    )
