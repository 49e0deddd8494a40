"""The engine with deadlines, quotas and shares: what is ended, refused or given up."""

import pytest

from inference.backlog import Ticket
from inference.protocol import FinishReason, RefusalCode
from inference.quota import Quota
from inference.sequence import Owner

YOU = Owner(1)


@pytest.fixture
def engine(kit, models, clock):
    return kit.make_engine(models["dense"], max_num_seqs=2, clock=clock)


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
