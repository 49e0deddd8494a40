"""How sequences end, and how they go on behind what was delivered."""

import weakref

import msgspec
import pytest

from inference.protocol import FinishReason
from inference.sequence import Owner

YOU = Owner(1)


def finish(kit, engine, asked, **changes):
    engine.add(kit.owner, kit.generate(asked, sampling=kit.sampling(**changes)))
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
    hot = kit.sampling(temperature=1.0, seed=11)
    request = kit.generate(asked, sampling=hot, num_sequences=2)
    engine.add(kit.owner, request)
    whole = kit.run(engine).token_ids
    assert whole["r", 0] != whole["r", 1]

    prefixes = [whole["r", 0][:6], whole["r", 1][:11]]
    engine.add(kit.owner, msgspec.structs.replace(request, output_prefixes=prefixes))
    rest = kit.run(engine).token_ids

    assert [prefixes[i] + rest["r", i] for i in (0, 1)] == [whole["r", i] for i in (0, 1)]


class Frame(bytearray):
    """What a connection has read, and a reference can be kept to without keeping it."""


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_request_that_has_ended_leaves_nothing_to_the_garbage_collector(
    kit, engine, is_cancelled
):
    """Its pictures are megabytes, and the collector comes after tens of thousands of objects."""
    asked = kit.case(kit.text(2, 5), kit.picture(2, 3, 2))
    frame = Frame(asked.visions[0].pixels)
    vision = msgspec.structs.replace(asked.visions[0], pixels=memoryview(frame))
    request = msgspec.structs.replace(kit.generate(asked), num_sequences=2, visions=[vision])
    engine.add(kit.owner, request)
    held = weakref.ref(frame)
    del frame, vision, request

    engine.step()
    if is_cancelled:
        engine.cancel(kit.owner, "r")
    kit.run(engine)
    engine.add(YOU, kit.generate(kit.case(kit.text(2, 6))))  # the last step is still known
    kit.run(engine)

    assert held() is None
