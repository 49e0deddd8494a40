"""Prefix hits change no token, and nothing but an equal prefix is a hit."""

import msgspec
import pytest

from inference.protocol import SamplingParams

BLOCK = 16


def answer(kit, engine, request, request_id="r", **changes):
    """Run one request alone; its tokens, and how many of its prompt were cached."""
    engine.add(kit.owner, kit.generate(request, request_id, 8, **changes))
    answers = kit.run(engine)
    return answers.token_ids[request_id, 0], answers.admission(request_id).num_cached_tokens


@pytest.fixture(scope="module")
def check(kit, models, sources):
    """Run `first`, then `second` on the same engine: its tokens must be the oracle's."""

    def run(first, second, **changes):
        engine = kit.make_engine(models["dense"], block_size=BLOCK)
        answer(kit, engine, first)
        token_ids, num_cached = answer(kit, engine, second, **changes)
        assert token_ids == kit.oracle(sources["dense"], second, 8)
        return num_cached

    return run


@pytest.mark.parametrize(
    ("common", "num_cached"),
    [
        pytest.param(("before",), 32, id="before-the-picture"),
        pytest.param(("before", "picture"), 48, id="inside-the-picture"),
        pytest.param(("before", "picture", "behind"), 80, id="behind-the-picture"),
    ],
)
def test_a_shared_prefix_is_found(kit, check, common, num_cached):
    """32 tokens, start, 20 of the picture, end, 40 tokens."""
    shared = {
        "before": kit.text(32, 1),
        "picture": kit.picture(4, 5, 1),
        "behind": kit.text(40, 2),
    }
    other = {"before": kit.text(32, 3), "picture": kit.picture(4, 5, 2), "behind": kit.text(40, 4)}
    first = kit.case(*shared.values())
    second = kit.case(*[(shared if name in common else other)[name] for name in shared])

    assert check(first, second) == num_cached


def test_the_same_pixels_encoded_anew_are_the_same_picture(kit, check):
    picture = kit.picture(4, 4, 1)
    copy = msgspec.structs.replace(picture, pixels=memoryview(bytes(picture.pixels)))
    question = kit.text(6, 3)

    assert check(kit.case(picture, kit.text(9, 2)), kit.case(copy, question)) == BLOCK


def test_another_picture_of_the_same_grid_and_text_is_no_hit(kit, check):
    text = kit.text(40, 2)

    assert check(kit.case(kit.picture(3, 4, 1), text), kit.case(kit.picture(3, 4, 2), text)) == 0


def test_the_picture_one_token_further_is_no_hit(kit, check):
    picture = kit.picture(6, 6, 1)

    assert check(kit.case([7] * 15, picture), kit.case([7] * 16, picture)) == 0
    assert check(kit.case([7] * 16, picture), kit.case([7] * 17, picture)) == BLOCK


def test_a_video_is_found_up_to_where_it_differs(kit, check):
    clip = kit.picture(3, 4, 1, 6, video=True)

    assert check(kit.case(clip, kit.text(5, 1)), kit.case(clip, kit.text(9, 2))) == 48


def test_another_tenants_prefix_is_no_hit(kit, check):
    request = kit.case(kit.text(20, 1), kit.picture(3, 4, 1))

    assert check(request, request, tenant="b") == 0


def test_a_whole_prompt_that_is_cached_leaves_one_token_to_compute(kit, check):
    request = kit.case(kit.text(2 * BLOCK, 1))

    assert check(request, request) == BLOCK


def test_a_finished_answer_is_part_of_the_next_turns_prefix(kit, models, sources):
    engine = kit.make_engine(models["dense"], block_size=BLOCK)
    first = kit.case(kit.text(20, 1))
    tokens, _ = answer(kit, engine, first)
    second = kit.case(first.prompt_token_ids + tokens + kit.text(15, 2))

    token_ids, num_cached = answer(kit, engine, second)

    assert token_ids == kit.oracle(sources["dense"], second, 8)
    assert num_cached == BLOCK  # the last token was never run through the model


def test_what_pressure_evicted_is_computed_anew(kit, models, sources):
    engine = kit.make_engine(models["dense"], num_blocks=8, block_size=BLOCK)
    request = kit.case(kit.text(10, 1), kit.picture(4, 5, 1), kit.text(10, 2))
    expected = kit.oracle(sources["dense"], request, 8)
    assert answer(kit, engine, request) == (expected, 0)
    assert answer(kit, engine, request)[1] > 0
    for seed in range(3, 6):
        answer(kit, engine, kit.case(kit.text(90, seed)))

    assert answer(kit, engine, request) == (expected, 0)


def test_a_hit_inside_a_picture_works_after_its_features_are_gone(kit, models, sources):
    engine = kit.make_engine(models["dense"], embedding_cache_bytes=0, block_size=BLOCK)
    picture = kit.picture(4, 5, 1)
    answer(kit, engine, kit.case(picture, kit.text(2, 1)))
    assert len(engine.scheduler.embeddings) == 0
    second = kit.case(picture, kit.text(9, 2))

    token_ids, num_cached = answer(kit, engine, second)

    assert num_cached == BLOCK
    assert token_ids == kit.oracle(sources["dense"], second, 8)


def test_an_encoded_picture_is_not_encoded_again(kit, models, sources):
    engine = kit.make_engine(models["dense"])
    picture = kit.picture(4, 5, 1)
    answer(kit, engine, kit.case(kit.text(3, 1), picture))
    second = kit.case(kit.text(9, 2), picture, kit.text(4, 3))

    token_ids, num_cached = answer(kit, engine, second)

    assert num_cached == 0
    assert engine.stats().embedding_cache_hits == 1
    assert token_ids == kit.oracle(sources["dense"], second, 8)


def test_siblings_share_the_prompt_and_agree(kit, models, sources):
    engine = kit.make_engine(models["dense"], num_blocks=100)
    request = kit.case(kit.text(60, 1), kit.picture(4, 5, 1), kit.text(20, 2))
    engine.add(kit.owner, kit.generate(request, "r", 8, num_sequences=4))
    answers = kit.answers()
    for _ in range(3):
        answers.take(engine.step())
    used = engine.scheduler.blocks.num_usable - engine.scheduler.blocks.num_free
    kit.run(engine, answers)

    expected = kit.oracle(sources["dense"], request, 8)
    assert [answers.token_ids["r", index] for index in range(4)] == [expected] * 4
    assert used == 6 + 4  # 102 tokens: six full blocks together, one of their own each
    cached = [answers.admission("r", index).num_cached_tokens for index in range(4)]
    assert cached == [0, 96, 96, 96]


def test_the_reported_hits_are_blocks_of_those_asked_for(kit, models):
    engine = kit.make_engine(models["dense"], block_size=BLOCK)
    request = kit.case(kit.text(3 * BLOCK + 1, 1))
    answer(kit, engine, request)
    answer(kit, engine, request)

    assert engine.stats().prefix_cache_queries == 6
    assert engine.stats().prefix_cache_hits == 3


def test_sampling_settings_do_not_matter_to_the_cache(kit, models, sources):
    engine = kit.make_engine(models["dense"])
    request = kit.case(kit.text(40, 1))
    hot = SamplingParams(max_tokens=8, temperature=1.5, seed=3)
    answer(kit, engine, request, sampling=hot)

    token_ids, num_cached = answer(kit, engine, request)

    assert (token_ids, num_cached) == (kit.oracle(sources["dense"], request, 8), 32)
