"""The engine with deadlines, quotas, shares and suspects: what is ended, refused or run alone."""

import itertools

import msgspec
import pytest

from inference import isolation
from inference.backlog import Ticket
from inference.protocol import FinishReason, Isolated, RefusalCode
from inference.quota import Quota
from inference.sequence import Owner

YOU = Owner(1)


class Clock:
    """Moves only when told to."""

    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def engine(kit, models, clock):
    engine = kit.make_engine(models["dense"], max_num_seqs=2)
    engine._clock = clock
    return engine


@pytest.fixture(scope="module")
def asked(kit):
    return kit.case(kit.text(20, 1))


@pytest.fixture(scope="module")
def tokens(kit, sources, asked):
    return kit.oracle(sources["dense"], asked, 20)


# Deadlines


@pytest.mark.parametrize("state", ["queued", "running"])
def test_a_deadline_ends_every_sequence_and_gives_everything_back(kit, engine, asked, clock, state):
    if state == "queued":
        for number in range(2):
            engine.add(kit.owner, kit.generate(asked, f"first {number}"))
    engine.add(kit.owner, kit.generate(asked, num_sequences=2, deadline_seconds=3.0))
    answers = kit.answers()
    for _ in range(4):
        answers.take(engine.step())
    clock.now += 2.9
    answers.take(engine.step())
    assert ("r", 0) not in answers.deltas or answers.finish("r") is None

    clock.now += 0.1
    kit.run(engine, answers)

    ends = [answers.finish("r", index) for index in range(2)]
    assert [end.reason for end in ends] == [FinishReason.DEADLINE] * 2
    counts = [len(answers.token_ids["r", index]) for index in range(2)]
    assert [end.num_output_tokens for end in ends] == counts
    assert (sum(counts) == 0) == (state == "queued")
    assert engine.stats().num_deadlines_exceeded == 1
    for number in range(2 * (state == "queued")):
        assert len(answers.token_ids[f"first {number}", 0]) == 20


def test_a_deadline_that_has_passed_on_arrival_ends_at_once(kit, engine, asked):
    engine.add(kit.owner, kit.generate(asked, deadline_seconds=-1.0))

    answers = kit.run(engine)

    assert answers.finish("r").reason is FinishReason.DEADLINE
    assert engine.stats().num_steps == 0


def test_steps_teach_what_a_deadline_can_hold(kit, engine, asked, clock):
    """A step of these takes a second; three requests on two rows cannot begin within one."""
    execute = engine.runner.execute

    def slow(chunks):
        clock.now += 1.0
        return execute(chunks)

    engine.runner.execute = slow
    engine.add(kit.owner, kit.generate(asked, "teacher", 3))
    kit.run(engine)
    for number in range(3):
        engine.add(kit.owner, kit.generate(asked, f"before {number}", 3))
    assert engine.stats().predicted_wait_seconds > 1

    engine.add(kit.owner, kit.generate(asked, "hurried", deadline_seconds=1.5))
    engine.add(kit.owner, kit.generate(asked, "patient", 3, deadline_seconds=60.0))
    answers = kit.run(engine)

    assert answers.refused["hurried"].code is RefusalCode.DEADLINE_UNREACHABLE
    assert answers.refused["hurried"].retry_after_seconds >= 1
    assert answers.finish("patient").reason is FinishReason.LENGTH
    assert engine.stats().num_deadlines_unreachable == 1


def test_a_warm_up_is_no_measure(kit, engine, asked):
    engine.add(kit.owner, kit.generate(asked))
    kit.run(engine)
    engine.gate.forget_pace()
    for number in range(3):
        engine.add(kit.owner, kit.generate(asked, f"{number}"))

    assert engine.stats().predicted_wait_seconds == 0
    kit.run(engine)


# Shares and quotas


def test_a_full_queue_gives_up_the_newest_of_who_has_most(kit, models, asked, tokens):
    engine = kit.make_engine(models["dense"], max_num_seqs=1, max_queued_requests=3)
    for number in range(4):
        engine.add(kit.owner, kit.generate(asked, f"heavy {number}", caller="heavy"))
    engine.add(YOU, kit.generate(asked, "light", caller="light"))

    answers = kit.run(engine)

    assert set(answers.refused) == {"heavy 3"}
    assert answers.refused["heavy 3"].code is RefusalCode.OVERLOADED
    assert answers.refused["heavy 3"].retry_after_seconds >= 1
    assert answers.token_ids["light", 0] == tokens
    assert engine.gate.figures().queued == (0, 0, 0)


def test_a_request_that_lost_its_place_before_it_was_taken_is_given_up(kit, models, asked, tokens):
    """Reading threads may be ahead of the loop by more than one request, and by a step."""
    engine = kit.make_engine(models["dense"], max_num_seqs=1, max_queued_requests=1)
    late = [
        engine.gate.admit(kit.generate(asked, f"heavy {number}", caller="heavy"))
        for number in range(2)
    ]
    engine.add(YOU, kit.generate(asked, "light", caller="light"))
    answers = kit.answers()
    answers.take(engine.step())

    for ticket in late:
        engine.take(kit.owner, ticket)
    kit.run(engine, answers)

    assert {name: refused.code for name, refused in answers.refused.items()} == {
        "heavy 1": RefusalCode.OVERLOADED
    }
    assert answers.token_ids["light", 0] == answers.token_ids["heavy 0", 0] == tokens
    assert engine.stats().num_overloaded == 1


def test_pictures_of_callers_take_turns(kit, models):
    engine = kit.make_engine(models["dense"], max_num_seqs=1, embedding_cache_bytes=0)
    encode, encoded = engine.runner.encode, []
    engine.runner.encode = lambda work: (
        encoded.extend(e.request.account for e in work) or encode(work)
    )
    for number in range(6):
        shown = kit.case(kit.picture(2, 2, number), [3])
        engine.add(kit.owner, kit.generate(shown, f"heavy {number}", 2, caller="heavy"))
    for number in range(2):
        shown = kit.case(kit.picture(2, 2, 10 + number), [3])
        engine.add(kit.owner, kit.generate(shown, f"light {number}", 2, caller="light"))

    kit.run(engine)

    assert encoded[:4].count("light") == 2


def test_output_tokens_are_charged_as_they_come(kit, engine, asked):
    quota = Quota(tokens_per_minute=50)
    engine.add(kit.owner, kit.generate(asked, "a", 25, caller="key", quota=quota))
    answers = kit.run(engine)
    engine.add(kit.owner, kit.generate(asked, "b", caller="key", quota=quota))

    kit.run(engine, answers)

    refused = answers.refused["b"]
    assert (refused.code, refused.quota) == (RefusalCode.RATE_LIMITED, "tokens")
    assert refused.retry_after_seconds == pytest.approx(60 * 15 / 50)  # 5 are left, 20 are needed
    assert engine.stats().num_rate_limited == 1


def test_figures_tell_what_waits(kit, engine, asked):
    shown = kit.case(kit.text(3, 1), kit.picture(2, 2, 1))
    for number in range(3):
        engine.add(kit.owner, kit.generate(asked, f"{number}", 2))
    engine.step()
    engine.add(kit.owner, kit.generate(shown, "shown", 2))

    stats = engine.stats()

    assert (stats.num_queued_tokens, stats.num_queued_patches) == (
        20 + len(shown.prompt_token_ids),
        16,
    )
    kit.run(engine)
    assert (engine.stats().num_queued_tokens, engine.stats().num_queued_patches) == (0, 0)


def test_what_the_gate_let_in_is_taken_later(kit, engine, asked, tokens):
    """As a reading thread does it."""
    ticket = engine.gate.admit(kit.generate(asked))
    assert isinstance(ticket, Ticket)
    assert not engine.has_work

    engine.take(kit.owner, ticket)

    assert kit.run(engine).token_ids["r", 0] == tokens


# Suspects


def drain(kit, engine, answers=None):
    """Run to the end; give the answers, and who was at work in every step."""
    answers, steps = answers or kit.answers(), []
    execute = engine.runner.execute

    def noting(chunks):
        steps.append({chunk.sequence.request.request_id for chunk in chunks})
        return execute(chunks)

    engine.runner.execute = noting
    isolated = []
    for _ in range(500):
        if not engine.has_work:
            break
        outputs = engine.step()
        named = [(owner, m) for owner, m in outputs if isinstance(m, Isolated)]
        isolated += [(owner, m.request_id, len(steps)) for owner, m in named]
        answers.take(output for output in outputs if output not in named)
        engine.scheduler.check_integrity()
    assert not engine.has_work
    return answers, steps, isolated


def test_suspects_of_all_workers_run_alone_one_after_another(kit, engine, asked, tokens):
    suspects = [("a", kit.owner), ("b", YOU), ("c", kit.owner)]
    for request_id, owner in suspects:
        engine.add(owner, kit.generate(asked, request_id, num_sequences=2, is_suspect=True))
    engine.add(YOU, kit.generate(asked, "other"))

    answers, steps, isolated = drain(kit, engine)

    assert [(request_id, owner) for owner, request_id, _ in isolated] == suspects
    for step in steps:
        assert len(step) == 1 or not step & {"a", "b", "c"}
    for request_id in "abc":
        assert answers.token_ids[request_id, 0] == tokens
    assert answers.token_ids["other", 0] == tokens


def test_a_suspect_is_named_before_its_first_step(kit, engine, asked):
    engine.add(kit.owner, kit.generate(asked, "a", is_suspect=True))

    outputs = engine.step()

    assert outputs == [(kit.owner, Isolated(request_id="a"))]
    assert engine.stats().num_steps == 0
    drain(kit, engine)


def test_a_suspect_does_not_wait_for_ever(kit, engine, asked, tokens, clock):
    """Others are put aside for it, and go on where they were."""
    engine.add(kit.owner, kit.generate(asked, "other"))
    engine.step()
    engine.add(kit.owner, kit.generate(asked, "suspect", num_tokens=3, is_suspect=True))
    answers = kit.answers()
    answers.take(engine.step())
    clock.now += isolation.PATIENCE_SECONDS

    _, steps, isolated = drain(kit, engine, answers)

    assert [request_id for _, request_id, _ in isolated] == ["suspect"]
    assert [step for step, _ in itertools.groupby(steps)] == [{"suspect"}, {"other"}]
    assert answers.token_ids["other", 0] == tokens[1:]


@pytest.mark.parametrize("ended", ["waiting", "running"])
def test_a_suspect_that_is_cancelled_lets_the_others_go_on(kit, engine, asked, tokens, ended):
    engine.add(kit.owner, kit.generate(asked, "first", is_suspect=True))
    engine.add(kit.owner, kit.generate(asked, "second", is_suspect=True))
    engine.add(kit.owner, kit.generate(asked, "other"))
    outputs = engine.step()
    assert [m.request_id for _, m in outputs] == ["first"]
    engine.step()
    gone, left = ("first", "second") if ended == "running" else ("second", "first")

    engine.cancel(kit.owner, gone)
    answers, *_ = drain(kit, engine)

    assert answers.finish(gone).reason is FinishReason.CANCELLED
    assert answers.finish(left).reason is FinishReason.LENGTH
    assert answers.token_ids["other", 0] == tokens
    assert (engine.scheduler.only, engine._isolation.alone, len(engine._isolation)) == (
        None,
        None,
        0,
    )


def test_a_suspect_goes_on_behind_what_was_delivered(kit, engine, asked, tokens):
    suspect = kit.generate(asked, output_prefixes=[tokens[:7]])
    engine.add(kit.owner, msgspec.structs.replace(suspect, is_suspect=True, is_replay=True))

    answers, *_ = drain(kit, engine)

    assert answers.token_ids["r", 0] == tokens[7:]
