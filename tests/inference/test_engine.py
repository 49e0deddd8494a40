"""The engine's answers: refusals, ends, figures, and what it does when memory runs out."""

from concurrent.futures import Future

import msgspec
import pytest
import torch

from inference.grammar import GrammarRefusedError
from inference.intake import SECONDS_PER_PRIORITY
from inference.protocol import FinishReason, Generate, Grammar, RefusalCode, SamplingParams
from inference.sequence import Owner

YOU = Owner(1)


@pytest.fixture
def engine(kit, models):
    return kit.make_engine(models["dense"])


@pytest.fixture(scope="module")
def asked(kit):
    return kit.case(kit.text(20, 1))


@pytest.fixture(scope="module")
def tokens(kit, sources, asked):
    """What the oracle says to it."""
    return kit.oracle(sources["dense"], asked, 20)


def sampling(max_tokens=20, **changes):
    return SamplingParams(max_tokens=max_tokens, **{"ignore_eos": True, **changes})


def refusal(kit, engine, request):
    engine.add(kit.owner, request)
    answers = kit.run(engine)
    assert not answers.deltas
    return answers.refused[request.request_id]


# What is refused


@pytest.mark.parametrize(("pool", "allowed"), [(1000, 2048), (4, 48)])
def test_what_never_fits_is_refused_with_both_numbers(kit, models, pool, allowed):
    """The context's length, or the pool where that is smaller."""
    engine = kit.make_engine(models["dense"], num_blocks=pool)
    request = kit.generate(kit.case(kit.text(30, 1)), num_tokens=allowed - 29)

    refused = refusal(kit, engine, request)

    assert refused.code is RefusalCode.CONTEXT_LENGTH_EXCEEDED
    assert (refused.needed, refused.allowed) == (allowed + 1, allowed)


def test_what_just_fits_is_answered(kit, models):
    engine = kit.make_engine(models["dense"], num_blocks=4)
    engine.add(kit.owner, kit.generate(kit.case(kit.text(30, 1)), num_tokens=18))

    assert len(kit.run(engine).token_ids["r", 0]) == 18


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"prompt_token_ids": []}, id="no-prompt"),
        pytest.param({"prompt_token_ids": [160]}, id="a-token-beyond-the-vocabulary"),
        pytest.param({"prompt_token_ids": [3, -1]}, id="a-negative-token"),
        pytest.param({"prompt_token_ids": [150]}, id="a-placeholder-without-a-picture"),
        pytest.param({"sampling": SamplingParams(max_tokens=0)}, id="nothing-to-generate"),
        pytest.param({"num_sequences": 0}, id="no-sequence"),
        pytest.param({"num_sequences": 2, "output_prefixes": [[1]]}, id="a-prefix-missing"),
        pytest.param({"output_prefixes": [[1] * 20]}, id="a-prefix-as-long-as-the-answer"),
        pytest.param({"output_prefixes": [[160]]}, id="a-prefix-beyond-the-vocabulary"),
        pytest.param({"num_sequences": 2, "sequence_indices": [1, 1]}, id="two-of-one-index"),
        pytest.param({"num_sequences": 2, "sequence_indices": [1]}, id="an-index-missing"),
        pytest.param({"sequence_indices": [-1]}, id="a-negative-index"),
    ],
)
def test_invalid_input_is_refused(kit, engine, asked, changes):
    request = msgspec.structs.replace(kit.generate(asked), **changes)

    assert refusal(kit, engine, request).code is RefusalCode.INPUT_INVALID


@pytest.mark.parametrize(
    "changes",
    [{"height": 64}, {"width": 33}, {"pixels": memoryview(b"abc")}, {"content_hash": b""}],
)
def test_a_picture_whose_size_does_not_match_is_refused(kit, engine, changes):
    request = kit.case(kit.picture(1, 1, 1))
    vision = msgspec.structs.replace(request.visions[0], **changes)
    request = msgspec.structs.replace(kit.generate(request), visions=[vision])

    assert refusal(kit, engine, request).code is RefusalCode.INPUT_INVALID


def test_a_request_id_in_use_is_refused_and_its_first_user_served(kit, engine, asked, tokens):
    engine.add(kit.owner, kit.generate(asked))
    engine.add(kit.owner, kit.generate(asked))

    answers = kit.run(engine)

    assert answers.refused["r"].code is RefusalCode.DUPLICATE_REQUEST_ID
    assert answers.token_ids["r", 0] == tokens


def test_a_request_id_can_be_used_again_once_it_is_done(kit, engine, asked, tokens):
    for _ in range(2):
        engine.add(kit.owner, kit.generate(asked))
        assert kit.run(engine).token_ids["r", 0] == tokens


def test_two_owners_may_use_one_request_id(kit, engine, asked):
    engine.add(kit.owner, kit.generate(asked, num_tokens=3))
    engine.add(YOU, kit.generate(asked, num_tokens=4))

    outputs = [output for _ in range(6) for output in engine.step()]

    counts = {owner: sum(o == owner for o, _ in outputs) for owner in (kit.owner, YOU)}
    assert counts == {kit.owner: 3, YOU: 4}


@pytest.mark.parametrize("queued", [0, 2])
def test_more_than_rows_and_queue_hold_is_refused(kit, models, asked, queued):
    engine = kit.make_engine(models["dense"], max_num_seqs=3, max_queued_requests=queued)
    for number in range(8):
        engine.add(kit.owner, kit.generate(asked, f"{number}", 4))

    answers = kit.run(engine)

    assert {request_id for request_id, _ in answers.deltas} == {str(i) for i in range(3 + queued)}
    refused = answers.refused["7"]
    assert refused.code is RefusalCode.OVERLOADED
    assert 1 <= refused.retry_after_seconds <= 60


def test_running_requests_take_no_place_in_the_queue(kit, models, asked):
    engine = kit.make_engine(models["dense"], max_num_seqs=2, max_queued_requests=1)
    for number in range(2):
        engine.add(kit.owner, kit.generate(asked, f"{number}", 9))
    engine.step()
    for number in range(2, 4):
        engine.add(kit.owner, kit.generate(asked, f"{number}", 9))

    assert set(kit.run(engine).refused) == {"3"}


def test_short_memory_refuses_newcomers_and_serves_the_others(kit, models, asked, tokens):
    engine = kit.make_engine(models["dense"])
    engine.add(kit.owner, kit.generate(asked, "early"))
    engine.gate._is_memory_short = lambda: True
    engine.add(kit.owner, kit.generate(asked, "late"))

    answers = kit.run(engine)

    assert answers.refused["late"].code is RefusalCode.OVERLOADED
    assert answers.token_ids["early", 0] == tokens


# How sequences end


def finish(kit, engine, asked, **changes):
    engine.add(kit.owner, kit.generate(asked, sampling=sampling(**changes)))
    answers = kit.run(engine)
    return answers.token_ids["r", 0], answers.finish("r")


def test_max_tokens_end_with_length(kit, engine, asked, tokens):
    got, end = finish(kit, engine, asked, max_tokens=5)

    assert got == tokens[:5]
    assert (end.reason, end.detail, end.num_output_tokens) == (
        FinishReason.LENGTH,
        "max_tokens",
        5,
    )


@pytest.mark.parametrize("kind", ["stop_token_ids", "end-of-sequence"])
def test_an_end_token_is_counted_but_not_delivered(kit, engine, asked, tokens, kind):
    last = next(i for i in range(3, 20) if tokens[i] not in tokens[:i])
    if kind == "stop_token_ids":
        changes = {"stop_token_ids": [tokens[last]]}
    else:
        engine.model = msgspec.structs.replace(engine.model, eos_token_ids=[tokens[last]])
        changes = {"ignore_eos": False}

    got, end = finish(kit, engine, asked, **changes)

    assert got == tokens[:last]
    assert (end.reason, end.detail, end.num_output_tokens) == (FinishReason.STOP, "", last + 1)


def test_an_end_token_that_is_ignored_is_a_token(kit, engine, asked, tokens):
    engine.model = msgspec.structs.replace(engine.model, eos_token_ids=tokens[:5])

    assert finish(kit, engine, asked)[0] == tokens


def test_before_min_tokens_no_end_token_is_chosen(kit, engine, asked, tokens):
    got, end = finish(kit, engine, asked, stop_token_ids=tokens[:3], min_tokens=6, max_tokens=8)

    assert end.num_output_tokens > 6
    assert not set(got[:6]) & set(tokens[:3])


def test_a_loop_ends_with_length_and_says_so(kit, engine, asked):
    got, end = finish(kit, engine, asked, max_tokens=600, logit_bias={7: 1000.0})

    assert (end.reason, end.detail) == (FinishReason.LENGTH, "repetition")
    assert got == [7] * 256


def test_the_repetition_guard_can_be_off(kit, engine, asked):
    bias = {"logit_bias": {7: 1000.0}, "repetition_guard": False}
    got, end = finish(kit, engine, asked, max_tokens=300, **bias)

    assert (len(got), end.detail) == (300, "max_tokens")


def test_a_cancelled_request_ends_once_per_sequence(kit, engine, asked):
    engine.add(kit.owner, kit.generate(asked, num_sequences=3))
    answers = kit.answers()
    for _ in range(4):
        answers.take(engine.step())

    engine.cancel(kit.owner, "r")
    engine.cancel(kit.owner, "r")
    kit.run(engine, answers)

    ends = [answers.finish("r", index) for index in range(3)]
    assert [end.reason for end in ends] == [FinishReason.CANCELLED] * 3
    assert [end.num_output_tokens for end in ends] == [
        len(answers.token_ids["r", index]) for index in range(3)
    ]


def test_cancelling_what_is_unknown_or_anothers_does_nothing(kit, engine, asked, tokens):
    engine.add(kit.owner, kit.generate(asked))

    engine.cancel(kit.owner, "unknown")
    engine.cancel(YOU, "r")
    engine.cancel_all(YOU)

    assert kit.run(engine).token_ids["r", 0] == tokens


def test_an_owner_that_is_gone_loses_all_its_requests_and_no_others(kit, engine, asked, tokens):
    for number in range(3):
        engine.add(YOU, kit.generate(asked, f"yours {number}"))
    engine.add(kit.owner, kit.generate(asked, "mine"))
    engine.step()

    engine.cancel_all(YOU)

    answers = kit.run(engine)
    assert len(answers.token_ids["mine", 0]) == 19  # the first came with the step above
    assert {answers.finish(f"yours {i}").reason for i in range(3)} == {FinishReason.CANCELLED}


def test_sequences_keep_the_indices_they_are_given(kit, engine, asked, tokens):
    """A request that goes on without a sibling that is done."""
    prefixes = [tokens[:4], tokens[:9]]
    request = kit.generate(
        asked, num_sequences=2, sequence_indices=[5, 2], output_prefixes=prefixes
    )
    engine.add(kit.owner, request)

    answers = kit.run(engine)

    assert answers.token_ids == {("r", 5): tokens[4:], ("r", 2): tokens[9:]}


def test_a_seeded_continuation_is_the_uninterrupted_one(kit, engine, asked):
    hot = sampling(temperature=1.0, seed=11)
    request = kit.generate(asked, sampling=hot, num_sequences=2)
    engine.add(kit.owner, request)
    whole = kit.run(engine).token_ids
    assert whole["r", 0] != whole["r", 1]

    prefixes = [whole["r", 0][:6], whole["r", 1][:11]]
    engine.add(kit.owner, msgspec.structs.replace(request, output_prefixes=prefixes))
    rest = kit.run(engine).token_ids

    assert [prefixes[i] + rest["r", i] for i in (0, 1)] == [whole["r", i] for i in (0, 1)]


# Requests whose grammar is compiled first


class Compiler:
    """Hands out promises, which the test keeps or breaks; `matcher` of what it keeps is its own."""

    def __init__(self, make_matcher=lambda: None):
        self.promises = []
        self._make_matcher = make_matcher
        self.is_closed = False

    def compile(self, grammar):
        self.promises.append(Future())
        return self.promises[-1]

    def matcher(self, output_token_ids):
        return self._make_matcher()

    def close(self):
        self.is_closed = True


class Matcher:
    """Allows every token; complete or in error after so many."""

    def __init__(self, num_tokens, error=None):
        self.num_tokens, self._error = num_tokens, error

    @property
    def is_complete(self):
        return self.num_tokens <= 0 and self._error is None

    @property
    def error(self):
        return self._error if self.num_tokens <= 0 else None

    def accept(self, token_id):
        self.num_tokens -= 1
        return True

    def fill_mask(self, mask):
        mask[:] = -1


@pytest.fixture
def constrained(kit, asked):
    return kit.generate(asked, sampling=sampling(grammar=Grammar(regex="a+")), num_sequences=2)


def test_a_request_waits_for_its_grammar_while_others_run(kit, engine, asked, tokens, constrained):
    engine._grammars = compiler = Compiler()
    engine.add(kit.owner, constrained)
    engine.add(kit.owner, kit.generate(asked, "plain", 2))
    answers = kit.answers()
    for _ in range(4):
        answers.take(engine.step())
    assert answers.finish("plain")
    assert engine.has_work
    assert engine.stats().num_waiting == 1

    compiler.promises[0].set_result(compiler)

    assert kit.run(engine, answers).token_ids["r", 1] == tokens


def test_a_grammar_that_is_refused_refuses_the_request(kit, engine, constrained):
    engine._grammars = compiler = Compiler()
    engine.add(kit.owner, constrained)
    error = GrammarRefusedError(RefusalCode.GRAMMAR_TOO_COMPLEX)
    compiler.promises[0].set_exception(error)

    answers = kit.run(engine)

    assert answers.refused["r"].code is RefusalCode.GRAMMAR_TOO_COMPLEX
    assert not answers.deltas


def test_a_request_can_be_cancelled_while_its_grammar_compiles(kit, engine, constrained):
    engine._grammars = compiler = Compiler()
    engine.add(kit.owner, constrained)

    engine.cancel(kit.owner, "r")
    compiler.promises[0].set_result(compiler)

    answers = kit.run(engine)
    ends = [answers.finish("r", index).reason for index in range(2)]
    assert ends == [FinishReason.CANCELLED] * 2


@pytest.mark.parametrize("error", [None, RefusalCode.INTERNAL])
def test_a_grammar_ends_its_sequence_when_complete_and_its_request_in_error(
    kit, engine, asked, tokens, constrained, error
):
    engine._grammars = compiler = Compiler(lambda: Matcher(3, error))
    engine.add(kit.owner, constrained)
    compiler.promises[0].set_result(compiler)

    answers = kit.run(engine)

    if error is None:
        assert answers.token_ids["r", 0] == tokens[:3]
        assert answers.finish("r").reason is FinishReason.STOP
    else:
        assert answers.token_ids["r", 0] == tokens[:2]
        assert answers.refused["r"].code is error
        assert not any(deltas[-1].finish for deltas in answers.deltas.values())


def test_a_sibling_whose_grammar_fails_ends_the_others_in_the_same_step(kit, engine, constrained):
    matchers = iter([Matcher(99), Matcher(2, RefusalCode.INTERNAL)])
    engine._grammars = compiler = Compiler(lambda: next(matchers))
    engine.add(kit.owner, constrained)
    compiler.promises[0].set_result(compiler)

    answers = kit.run(engine)

    assert answers.refused["r"].code is RefusalCode.INTERNAL
    assert [len(answers.token_ids["r", index]) for index in range(2)] == [2, 1]


def test_closing_the_engine_closes_the_compiler(engine):
    engine._grammars = compiler = Compiler()

    engine.close()

    assert compiler.is_closed


# What is told


def test_logprobs_come_with_their_tokens(kit, engine, asked, tokens):
    engine.add(kit.owner, kit.generate(asked, sampling=sampling(6, logprobs=3)))

    answers = kit.run(engine)

    for delta, token_id in zip(answers.deltas["r", 0], tokens[:6], strict=True):
        (logprob,) = delta.logprobs
        assert delta.token_ids == [token_id] == [logprob.token_id]
        assert logprob.top[0] == (token_id, logprob.logprob)
        assert len(logprob.top) == 3


def test_an_end_token_brings_no_logprob(kit, engine, asked, tokens):
    stop = sampling(logprobs=0, stop_token_ids=[tokens[0]])
    engine.add(kit.owner, kit.generate(asked, sampling=stop))

    (delta,) = kit.run(engine).deltas["r", 0]

    assert (delta.token_ids, delta.logprobs) == ([], [])


def test_times_add_up(kit, models):
    """On a clock that moves by one each time it is read, from zero."""
    engine = kit.make_engine(models["dense"])
    ticks = iter(range(10_000))
    engine._clock = lambda: float(next(ticks))
    request = kit.case(kit.text(3, 1), kit.picture(2, 2, 1))
    engine.add(kit.owner, kit.generate(request, num_tokens=5))

    answers = kit.run(engine)

    began, ended = answers.admission("r"), answers.finish("r")
    assert began.queue_seconds > 0
    assert began.vision_seconds == 1
    assert began.prefill_seconds > 0
    assert ended.decode_seconds > 0
    last = next(ticks)
    parts = began.queue_seconds + began.vision_seconds + began.prefill_seconds
    assert parts + ended.decode_seconds < last


def test_only_the_first_message_tells_how_a_sequence_began(kit, engine, asked):
    engine.add(kit.owner, kit.generate(asked, num_tokens=4))

    deltas = kit.run(engine).deltas["r", 0]

    assert [delta.admission is not None for delta in deltas] == [True, False, False, False]


def test_what_is_cancelled_before_it_ran_never_began(kit, engine, asked):
    engine.add(kit.owner, kit.generate(asked))
    engine.cancel(kit.owner, "r")

    (delta,) = kit.run(engine).deltas["r", 0]

    assert delta.admission is None
    assert (delta.finish.num_output_tokens, delta.finish.decode_seconds) == (0, 0.0)


def test_figures_count_what_happened(kit, models, asked):
    engine = kit.make_engine(models["dense"], max_num_seqs=2)
    for number in range(3):
        engine.add(kit.owner, kit.generate(asked, f"{number}", 5))
    engine.step()
    during = engine.stats()
    kit.run(engine)
    after = engine.stats()

    assert (during.num_running, during.num_waiting) == (2, 1)
    assert during.num_free_blocks < after.num_free_blocks
    assert (after.num_running, after.num_waiting) == (0, 0)
    assert (after.num_prompt_tokens, after.num_output_tokens) == (60, 15)
    assert after.num_steps == 10


def test_priorities_go_first_and_equals_in_order_of_arrival(kit, models, asked):
    engine = kit.make_engine(models["dense"], max_num_seqs=1)
    for request_id, priority in [("a", 0), ("b", 1), ("c", 0), ("d", -1)]:
        engine.add(kit.owner, kit.generate(asked, request_id, 2, priority=priority))

    answers = kit.run(engine)

    assert [request_id for request_id, _ in answers.deltas] == ["d", "a", "c", "b"]
    assert SECONDS_PER_PRIORITY > 0


def test_nothing_grows_with_the_requests_that_have_passed(kit, models):
    """Cost per step and memory stay as they are: every container is as empty as before."""
    engine = kit.make_engine(models["dense"], num_blocks=20, embedding_cache_bytes=0)

    def sizes():
        scheduler, runner = engine.scheduler, engine.runner
        owners = (
            engine,
            engine._answers,
            engine._isolation,
            engine.gate,
            engine.gate._backlog,
            scheduler,
            scheduler.waiting,
            scheduler.blocks,
            scheduler.embeddings,
            runner,
        )
        return {
            f"{type(owner).__name__}.{name}": len(value)
            for owner in owners
            for name, value in vars(owner).items()
            if isinstance(value, dict | list | set)
        }

    def serve(number):
        parts = (kit.picture(1, 1, number),) if number % 50 == 0 else ()
        request = kit.case([number % 150], *parts, [number // 150])
        for sibling in "ab":
            engine.add(kit.owner, kit.generate(request, f"{number}{sibling}", 1 + number % 2))
        engine.step()
        engine.cancel(kit.owner, f"{number}a")

    for number in range(40):
        serve(number)
    kit.run(engine)
    before = sizes()
    for number in range(40, 1040):
        serve(number)
    kit.run(engine)

    assert sizes() == before


# When memory runs out


class Shortage:
    """A runner whose memory does not hold what `is_too_much` says: a step's chunks."""

    def __init__(self, engine, is_too_much, *, where="execute"):
        self.engine, self.is_too_much = engine, is_too_much
        self.num_failures = 0
        call = getattr(engine.runner, where)

        def failing(work):
            if self.is_too_much(work):
                self.num_failures += 1
                raise torch.OutOfMemoryError
            return call(work)

        setattr(engine.runner, where, failing)


def holds(*request_ids):
    return lambda work: any(
        (part.request if hasattr(part, "request") else part.sequence.request).request_id
        in request_ids
        for part in work
    )


def test_a_prefill_that_finds_no_memory_fails_alone(kit, models, cases, expected):
    engine = kit.make_engine(models["dense"])
    shortage = Shortage(engine, holds("text"))
    names = ["text", "one picture", "video"]
    for name in names:
        engine.add(kit.owner, kit.generate(cases[name], name))

    answers = kit.run(engine)

    assert shortage.num_failures > 1
    assert answers.refused["text"].code is RefusalCode.OUT_OF_MEMORY
    for name in names[1:]:
        assert answers.token_ids[name, 0] == expected["dense"][name]


def test_a_step_too_large_is_done_in_parts_and_nobody_fails(kit, models, cases, expected):
    engine = kit.make_engine(models["dense"])
    shortage = Shortage(engine, lambda chunks: len(chunks) > 1)
    encode, encoded = engine.runner.encode, []
    engine.runner.encode = lambda encodings: encoded.extend(encodings) or encode(encodings)
    for name in cases:
        engine.add(kit.owner, kit.generate(cases[name], name))

    answers = kit.run(engine)

    assert shortage.num_failures
    assert (
        len(encoded) == len({e.key for e in encoded}) == sum(len(c.visions) for c in cases.values())
    )
    assert {name: answers.token_ids[name, 0] for name in cases} == expected["dense"]


@pytest.mark.parametrize("where", ["encode", "execute"])
def test_who_shares_a_picture_with_a_request_that_failed_goes_on(
    kit, models, cases, expected, where
):
    """The failed one was to encode it for both."""
    engine = kit.make_engine(models["dense"])
    name = "one picture"
    Shortage(engine, holds("first"), where="execute")
    if where == "encode":
        fails = iter([True, True])
        Shortage(engine, lambda _: next(fails, False), where="encode")
    for request_id in ("first", "second"):
        engine.add(kit.owner, kit.generate(cases[name], request_id))

    answers = kit.run(engine)

    assert answers.refused["first"].code is RefusalCode.OUT_OF_MEMORY
    assert answers.token_ids["second", 0] == expected["dense"][name]


def test_a_picture_that_went_with_a_failed_request_comes_when_another_reaches_it(
    kit, models, sources
):
    """The other's prompt had not come to it in the step that failed."""
    engine = kit.make_engine(models["dense"], max_num_batched_tokens=40, embedding_cache_bytes=0)
    picture = kit.picture(3, 4, 1)
    later = kit.case(kit.text(50, 1), picture)
    Shortage(engine, holds("first"))
    engine.add(kit.owner, kit.generate(kit.case(picture), "first"))
    engine.add(kit.owner, kit.generate(later, "second", 8))

    answers = kit.run(engine)

    assert set(answers.refused) == {"first"}
    assert answers.token_ids["second", 0] == kit.oracle(sources["dense"], later, 8)


def test_rows_of_one_token_come_first_and_by_length(kit, models, cases):
    """What the runner asks for; the last token behind a prefix hit is one of them."""
    engine = kit.make_engine(models["dense"], max_num_batched_tokens=24)
    execute, batches = engine.runner.execute, []
    engine.runner.execute = lambda chunks: batches.append(chunks) or execute(chunks)
    for name in cases:
        engine.add(kit.owner, kit.generate(cases[name], name))
        engine.step()
    kit.run(engine)

    for chunks in batches:
        singles = [chunk.end for chunk in chunks if chunk.num_tokens == 1]
        assert [chunk.end for chunk in chunks[: len(singles)]] == sorted(singles)
    assert any(len({chunk.num_tokens > 1 for chunk in chunks}) == 2 for chunks in batches)


def test_a_sibling_that_finds_no_memory_ends_its_whole_request(kit, models, asked, tokens):
    engine = kit.make_engine(models["dense"])
    Shortage(engine, lambda chunks: any(c.sequence.index == 1 for c in chunks))
    engine.add(kit.owner, kit.generate(asked, "siblings", num_sequences=3))
    engine.add(kit.owner, kit.generate(asked, "alone"))

    answers = kit.run(engine)

    assert answers.refused["siblings"].code is RefusalCode.OUT_OF_MEMORY
    assert answers.token_ids["alone", 0] == tokens


def test_a_step_that_fails_while_choosing_tokens_runs_again(kit, models, cases, expected):
    """Behind the model nothing has changed yet: pictures are still pinned."""
    engine = kit.make_engine(models["dense"], embedding_cache_bytes=0)
    sample, fails = engine._sampler.sample, iter([True, False, True, True])

    def failing(logits, rows):
        if next(fails, False) and len(rows) > 1:
            raise torch.OutOfMemoryError
        return sample(logits, rows)

    engine._sampler.sample = failing
    names = ["one picture", "video", "text"]
    for name in names:
        engine.add(kit.owner, kit.generate(cases[name], name))

    answers = kit.run(engine)

    assert {name: answers.token_ids[name, 0] for name in names} == {
        name: expected["dense"][name] for name in names
    }


def test_the_hosts_allocator_has_no_exception_of_its_own(kit, models, asked):
    engine = kit.make_engine(models["dense"])
    message = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"

    def failing(chunks):
        raise RuntimeError(message)

    engine.runner.execute = failing

    assert refusal(kit, engine, kit.generate(asked)).code is RefusalCode.OUT_OF_MEMORY


def test_any_other_error_is_not_swallowed(kit, models, asked):
    engine = kit.make_engine(models["dense"])

    def failing(chunks):
        raise RuntimeError("a bug")

    engine.runner.execute = failing
    engine.add(kit.owner, kit.generate(asked))

    with pytest.raises(RuntimeError, match="a bug"):
        engine.step()


# In other types and without our kernels


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_without_our_kernels_the_tokens_are_the_same(kit, cases, expected, monkeypatch, kind):
    from inference.model import take_over

    monkeypatch.setattr("inference.model.load_kernels", lambda dtype: None)
    engine = kit.make_engine(take_over(kit.build_source(kind)), max_num_batched_tokens=33)
    for name in cases:
        engine.add(kit.owner, kit.generate(cases[name], name))

    answers = kit.run(engine)

    assert {name: answers.token_ids[name, 0] for name in cases} == expected[kind]


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_bf16_logits_stay_near_the_exact_ones(kit, sources, cases, expected, kind):
    """Teacher-forced, chunked, over the paged pool; not beyond what bf16 costs transformers."""
    from inference.model import take_over

    request, tokens = cases["picture and video"], expected[kind]["picture and video"]
    exact = forced_logits(kit, sources[kind], request, tokens)
    theirs = kit.build_source(kind, torch.bfloat16)
    rounded = forced_logits(kit, theirs, request, tokens)
    engine = kit.make_engine(take_over(theirs), max_num_batched_tokens=11)
    seen = []
    execute = engine.runner.execute

    def forced(chunks):
        logits = execute(chunks).clone()
        if len(logits):
            seen.append(logits.float().clone())
            logits[:, tokens[len(seen) - 1]] = 1e4
        return logits

    engine.runner.execute = forced
    engine.add(kit.owner, kit.generate(request))

    assert kit.run(engine).token_ids["r", 0] == tokens
    assert (torch.cat(seen) - exact).norm() < 1.5 * (rounded - exact).norm()


def forced_logits(kit, source, request, tokens):
    inputs = kit.model_inputs(source, request)
    extra = torch.tensor([tokens[:-1]])
    inputs["input_ids"] = torch.cat((inputs["input_ids"], extra), 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    types = inputs["mm_token_type_ids"]
    inputs["mm_token_type_ids"] = torch.cat((types, torch.zeros_like(extra, dtype=types.dtype)), 1)
    source.model.rope_deltas = None
    with torch.no_grad():
        return source(**inputs).logits[0, len(request.prompt_token_ids) - 1 :].float()


def test_a_generate_message_survives_the_wire(kit, engine, cases, expected):
    """As it arrives: pixels are a view of the frame."""
    from inference.frames import decode_worker_message, encode

    message = decode_worker_message(encode(kit.generate(cases["video"])))
    assert isinstance(message, Generate)
    engine.add(kit.owner, message)

    assert kit.run(engine).token_ids["r", 0] == expected["dense"]["video"]
