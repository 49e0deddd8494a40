"""The engine with suspects: each runs alone, is named before, and the others go on."""

import itertools

import msgspec
import pytest

from inference import isolation
from inference.protocol import FinishReason, Isolated
from inference.sequence import Owner

YOU = Owner(1)


@pytest.fixture
def engine(kit, models, clock):
    return kit.make_engine(models["dense"], max_num_seqs=2, clock=clock)


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
