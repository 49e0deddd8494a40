"""What the engine refuses, and that it serves the others."""

import msgspec
import pytest

from inference.protocol import RefusalCode, SamplingParams
from inference.sequence import Owner

YOU = Owner(1)


def refusal(kit, engine, request):
    engine.add(kit.owner, request)
    answers = kit.run(engine)
    assert not answers.deltas
    return answers.refused[request.request_id]


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
    answers_of_the_watch = iter([False, True])
    engine = kit.make_engine(models["dense"], is_memory_short=lambda: next(answers_of_the_watch))
    engine.add(kit.owner, kit.generate(asked, "early"))
    engine.add(kit.owner, kit.generate(asked, "late"))

    answers = kit.run(engine)

    assert answers.refused["late"].code is RefusalCode.OVERLOADED
    assert answers.token_ids["early", 0] == tokens
