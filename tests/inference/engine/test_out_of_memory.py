"""A step that finds no memory: done again in parts, and who fails for it."""

import pytest
import torch

from inference.protocol import RefusalCode


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
    engine.add(kit.owner, kit.generate(asked))

    assert kit.run(engine).refused["r"].code is RefusalCode.OUT_OF_MEMORY


def test_any_other_error_is_not_swallowed(kit, models, asked):
    engine = kit.make_engine(models["dense"])

    def failing(chunks):
        raise RuntimeError("a bug")

    engine.runner.execute = failing
    engine.add(kit.owner, kit.generate(asked))

    with pytest.raises(RuntimeError, match="a bug"):
        engine.step()
