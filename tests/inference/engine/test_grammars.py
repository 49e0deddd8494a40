"""Requests whose grammar is compiled first, and what it does to their sequences."""

from concurrent.futures import Future

import pytest

from inference.grammar import GrammarRefusedError
from inference.protocol import FinishReason, Grammar, RefusalCode


class Compiler:
    """Hands out promises, which the test keeps or breaks; `matcher` of what it keeps is its own."""

    def __init__(self):
        self.promises = []
        self.make_matcher = lambda: None
        self.is_closed = False

    def compile(self, grammar):
        self.promises.append(Future())
        return self.promises[-1]

    def matcher(self, output_token_ids):
        return self.make_matcher()

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
def compiler():
    return Compiler()


@pytest.fixture
def engine(kit, models, compiler):
    return kit.make_engine(models["dense"], grammars=compiler)


@pytest.fixture
def constrained(kit, asked):
    return kit.generate(asked, sampling=kit.sampling(grammar=Grammar(regex="a+")), num_sequences=2)


def test_a_request_waits_for_its_grammar_while_others_run(
    kit, engine, compiler, asked, tokens, constrained
):
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


def test_a_grammar_that_is_refused_refuses_the_request(kit, engine, compiler, constrained):
    engine.add(kit.owner, constrained)
    error = GrammarRefusedError(RefusalCode.GRAMMAR_TOO_COMPLEX)
    compiler.promises[0].set_exception(error)

    answers = kit.run(engine)

    assert answers.refused["r"].code is RefusalCode.GRAMMAR_TOO_COMPLEX
    assert not answers.deltas


def test_a_request_can_be_cancelled_while_its_grammar_compiles(kit, engine, compiler, constrained):
    engine.add(kit.owner, constrained)

    engine.cancel(kit.owner, "r")
    compiler.promises[0].set_result(compiler)

    answers = kit.run(engine)
    ends = [answers.finish("r", index).reason for index in range(2)]
    assert ends == [FinishReason.CANCELLED] * 2


@pytest.mark.parametrize("error", [None, RefusalCode.INTERNAL])
def test_a_grammar_ends_its_sequence_when_complete_and_its_request_in_error(
    kit, engine, compiler, tokens, constrained, error
):
    compiler.make_matcher = lambda: Matcher(3, error)
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


def test_a_sibling_whose_grammar_fails_ends_the_others_in_the_same_step(
    kit, engine, compiler, constrained
):
    matchers = iter([Matcher(99), Matcher(2, RefusalCode.INTERNAL)])
    compiler.make_matcher = lambda: next(matchers)
    engine.add(kit.owner, constrained)
    compiler.promises[0].set_result(compiler)

    answers = kit.run(engine)

    assert answers.refused["r"].code is RefusalCode.INTERNAL
    assert [len(answers.token_ids["r", index]) for index in range(2)] == [2, 1]


def test_closing_the_engine_closes_the_compiler(engine, compiler):
    engine.close()

    assert compiler.is_closed
