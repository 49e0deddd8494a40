"""Answers from an engine's deltas: text, ends and counts that are true."""

from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from inference.protocol import (
    Admission,
    Delta,
    Finish,
    FinishReason,
    Generate,
    SamplingParams,
    TokenLogprob,
)
from service.engine.engine_client import EngineClient
from service.text.answer import AnswerDelta, answer, count_usage
from service.text.detokenizer import Vocabulary
from service.text.prompt import Prompt


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_file(str(checkpoint / "tokenizer.json"))


@pytest.fixture(scope="session")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer)


class ToldEngine:
    """Gives the deltas it was made with, and notes who was cancelled."""

    def __init__(self, deltas: Sequence[Delta]) -> None:
        self._deltas = deltas
        self.cancelled: list[str] = []

    async def generate(self, request: Generate) -> AsyncGenerator[Delta, None]:
        for delta in self._deltas:
            yield delta

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)


def request(num_sequences: int = 1) -> Generate:
    return Generate(
        request_id="r",
        prompt_token_ids=[1],
        sampling=SamplingParams(max_tokens=100),
        num_sequences=num_sequences,
    )


def finish(num_output_tokens: int, reason: FinishReason = FinishReason.LENGTH) -> Finish:
    return Finish(
        reason=reason,
        detail="max_tokens",
        num_output_tokens=num_output_tokens,
        decode_seconds=1.0,
    )


def deltas_of(
    token_ids: Sequence[int],
    tokens_per_delta: int,
    *,
    index: int = 0,
    num_hidden: int = 0,
    num_cached_tokens: int = 16,
) -> list[Delta]:
    """Cut a sequence; num_hidden end tokens are counted and not delivered."""
    starts = range(0, max(len(token_ids), 1), tokens_per_delta)
    return [
        Delta(
            request_id="r",
            index=index,
            token_ids=list(token_ids[start : start + tokens_per_delta]),
            logprobs=[
                TokenLogprob(token_id=token_id, logprob=-1.0)
                for token_id in token_ids[start : start + tokens_per_delta]
            ],
            admission=Admission(num_cached_tokens=num_cached_tokens) if start == 0 else None,
            finish=finish(len(token_ids) + num_hidden) if start == starts[-1] else None,
        )
        for start in starts
    ]


async def collect(
    engine: ToldEngine, vocabulary: Vocabulary, stops: Sequence[str] = (), num_sequences: int = 1
) -> list[list[AnswerDelta]]:
    answers: list[list[AnswerDelta]] = [[] for _ in range(num_sequences)]
    async for delta in answer(engine, request(num_sequences), stops, vocabulary):
        answers[delta.index].append(delta)
    return answers


def text_of(deltas: Sequence[AnswerDelta]) -> str:
    return "".join(delta.text for delta in deltas)


@pytest.mark.parametrize("tokens_per_delta", [1, 3, 100])
async def test_an_answer_is_its_tokens_as_text_and_ends_once(
    tokenizer: Tokenizer, vocabulary: Vocabulary, tokens_per_delta: int
):
    token_ids = tokenizer.encode("A red circle, 你好 😀.", add_special_tokens=False).ids
    engine = ToldEngine(deltas_of(token_ids, tokens_per_delta, num_hidden=1))

    [deltas] = await collect(engine, vocabulary)

    assert text_of(deltas) == "A red circle, 你好 😀."
    assert [token_id for delta in deltas for token_id in delta.token_ids] == token_ids
    assert [delta.finish is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    ending = deltas[-1].finish
    assert ending is not None
    assert (ending.reason, ending.detail) == (FinishReason.LENGTH, "max_tokens")
    assert ending.num_output_tokens == len(token_ids) + 1
    assert ending.stop is None
    assert ending.decode_seconds == 1.0
    assert [delta.admission is not None for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert engine.cancelled == []


@pytest.mark.parametrize("tokens_per_delta", [1, 2, 5])
async def test_a_stop_string_ends_the_answer_and_the_engines_work(
    tokenizer: Tokenizer, vocabulary: Vocabulary, tokens_per_delta: int
):
    token_ids = tokenizer.encode("one two END three four five", add_special_tokens=False).ids
    needed = next(
        count
        for count in range(len(token_ids) + 1)
        if " END" in tokenizer.decode(token_ids[:count])
    )
    engine = ToldEngine(deltas_of(token_ids, tokens_per_delta))

    [deltas] = await collect(engine, vocabulary, [" END"])

    assert text_of(deltas) == "one two"
    ending = deltas[-1].finish
    assert ending is not None
    assert (ending.reason, ending.detail, ending.stop) == (FinishReason.STOP, "", " END")
    assert ending.num_output_tokens == needed
    assert ending.decode_seconds < 1.0  # until then, not to the engine's end
    assert [token_id for delta in deltas for token_id in delta.token_ids] == token_ids[:needed]
    assert sum(len(delta.logprobs) for delta in deltas) == needed
    assert engine.cancelled == ["r"]


async def test_a_stop_string_in_the_engines_last_words_keeps_the_engines_account(
    tokenizer: Tokenizer, vocabulary: Vocabulary
):
    token_ids = tokenizer.encode("one END two", add_special_tokens=False).ids
    engine = ToldEngine(deltas_of(token_ids, 100))

    [[delta]] = await collect(engine, vocabulary, [" END"])

    assert delta.text == "one"
    assert delta.finish is not None
    assert delta.finish.decode_seconds == 1.0
    assert delta.finish.num_output_tokens < len(token_ids)
    assert engine.cancelled == []


async def test_text_held_back_shows_when_the_answer_ends_without_the_stop_string(
    tokenizer: Tokenizer, vocabulary: Vocabulary
):
    token_ids = tokenizer.encode("the en", add_special_tokens=False).ids

    [deltas] = await collect(ToldEngine(deltas_of(token_ids, 1)), vocabulary, ["end"])

    assert text_of(deltas) == "the en"
    assert deltas[-1].finish is not None
    assert deltas[-1].finish.reason == FinishReason.LENGTH


async def test_a_stop_string_ends_one_answer_and_the_others_go_on(
    tokenizer: Tokenizer, vocabulary: Vocabulary
):
    first = tokenizer.encode("a. b. c. d", add_special_tokens=False).ids
    second = tokenizer.encode("no stop here at all", add_special_tokens=False).ids
    told = [*deltas_of(first, 2), *deltas_of(second, 2, index=1)]
    told.sort(key=lambda delta: delta.finish is not None)
    engine = ToldEngine(told)

    answers = await collect(engine, vocabulary, ["."], num_sequences=2)

    assert [text_of(deltas) for deltas in answers] == ["a", "no stop here at all"]
    assert [sum(delta.finish is not None for delta in deltas) for deltas in answers] == [1, 1]


async def test_a_consumer_that_leaves_cancels_the_request(
    tokenizer: Tokenizer, vocabulary: Vocabulary
):
    token_ids = tokenizer.encode("a long story", add_special_tokens=False).ids
    engine = ToldEngine(deltas_of(token_ids, 1))

    answers = answer(engine, request(), [], vocabulary)
    await anext(answers)
    await answers.aclose()

    assert engine.cancelled == ["r"]


@settings(max_examples=100, deadline=None)
@given(
    text=st.text("ab \n好😀", max_size=20),
    stops=st.lists(st.text("ab \n好", min_size=1, max_size=3), max_size=3),
    sizes=st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
def test_an_answer_does_not_depend_on_how_its_tokens_came(
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    text: str,
    stops: list[str],
    sizes: tuple[int, int],
):
    token_ids = tokenizer.encode(text, add_special_tokens=False).ids

    def outcome(tokens_per_delta: int) -> tuple[str, str | None, int, int]:
        engine = ToldEngine(deltas_of(token_ids, tokens_per_delta))
        [deltas] = anyio.run(collect, engine, vocabulary, stops)
        ending = deltas[-1].finish
        assert ending is not None
        num_logprobs = sum(len(delta.logprobs) for delta in deltas)
        return text_of(deltas), ending.stop, ending.num_output_tokens, num_logprobs

    assert outcome(sizes[0]) == outcome(sizes[1])


async def test_usage_counts_the_prompt_once_and_every_answers_tokens(
    tokenizer: Tokenizer, vocabulary: Vocabulary
):
    prompt = Prompt([1] * 30, num_text_tokens=10, num_image_tokens=20, max_output_tokens=99)
    token_ids = tokenizer.encode("abc", add_special_tokens=False).ids
    # The second answer finds what the first had computed.
    told = [
        *deltas_of(token_ids, 9, num_cached_tokens=16),
        *deltas_of(token_ids, 9, num_cached_tokens=29, index=1),
    ]
    answers = await collect(ToldEngine(told), vocabulary, num_sequences=2)
    admissions = [started for deltas in answers if (started := deltas[0].admission) is not None]
    finishes = [ending for deltas in answers if (ending := deltas[-1].finish) is not None]

    usage = count_usage(prompt, admissions, finishes)

    assert usage.num_prompt_tokens == 30
    assert (usage.num_text_tokens, usage.num_image_tokens) == (10, 20)
    assert usage.num_cached_tokens == 16
    assert usage.num_output_tokens == 2 * len(token_ids)


async def test_a_stop_string_frees_the_engine_behind_a_real_wire(
    null_engine: Callable[..., Any], tokenizer: Tokenizer, vocabulary: Vocabulary
):
    token_ids = tokenizer.encode("go on STOP", add_special_tokens=False).ids
    engine = null_engine(token_ids=token_ids)
    async with EngineClient(engine.address, engine.authkey) as client:
        await client.wait_ready()
        generate = Generate(
            request_id="r",
            prompt_token_ids=[1],
            sampling=SamplingParams(max_tokens=10**6),
        )

        deltas = [delta async for delta in answer(client, generate, ["STOP"], vocabulary)]

        assert text_of(deltas) == "go on "
        assert client.num_unfinished == 0
