"""What is predicted from measured steps, and what is not."""

import pytest

from inference.pace import Curve, Pace


@pytest.fixture
def pace():
    return Pace(max_num_batched_tokens=100, max_num_encoded_patches=50)


def test_nothing_is_predicted_before_it_was_measured(pace):
    assert Curve().predict(5, now=0.0) is None
    assert pace.prefill_seconds(10, 0, 3, now=0.0) is None
    assert pace.decode_seconds(4, now=0.0) == 0.0
    assert pace.answers_seconds(3, 2, now=0.0) == 0.0


@pytest.mark.parametrize(
    ("size", "seconds"), [(5, 0.5), (10, 1.0), (55, 2.0), (100, 3.0), (5000, 3.0)]
)
def test_between_sizes_it_is_straight_and_beyond_the_largest_no_less(size, seconds):
    curve = Curve()
    curve.learn(10, 1.0, now=0.0)
    curve.learn(100, 3.0, now=0.0)

    assert curve.predict(size, now=1.0) == pytest.approx(seconds)


def test_one_odd_step_does_not_turn_a_prediction_over():
    curve = Curve()
    for _ in range(20):
        curve.learn(64, 0.1, now=0.0)
    curve.learn(64, 1.0, now=0.0)

    seconds = curve.predict(64, now=0.0)
    assert seconds is not None
    assert 0.1 < seconds < 0.4


def test_a_step_in_which_the_machine_stood_still_keeps_nobody_away(pace):
    for _ in range(20):
        pace.learn_step(num_decodes=1, num_prefill_tokens=0, seconds=0.01, now=0.0)
    pace.learn_step(num_decodes=1, num_prefill_tokens=0, seconds=30.0, now=30.0)

    assert pace.decode_seconds(1, now=30.0) < 0.02
    pace.learn_answer(100, is_whole=True)
    assert pace.answer_seconds(100, 1, now=30.0) < 2.0


def test_steps_that_have_become_slower_are_soon_believed():
    curve = Curve()
    curve.learn(64, 0.01, now=0.0)
    for _ in range(25):
        curve.learn(64, 1.0, now=0.0)

    assert curve.predict(64, now=0.0) == pytest.approx(1.0, rel=0.1)


def test_what_was_measured_long_ago_is_forgotten():
    """Else a figure that refuses all work would stay for ever."""
    curve = Curve()
    curve.learn(64, 100.0, now=0.0)

    assert curve.predict(64, now=30.0) == 100.0
    assert curve.predict(64, now=90.0) is None
    curve.learn(64, 1.0, now=90.0)
    assert curve.predict(64, now=90.0) == 1.0


def test_a_mixed_steps_time_is_the_prompts_without_what_decoding_takes(pace):
    pace.learn_step(num_decodes=4, num_prefill_tokens=0, seconds=0.2, now=0.0)
    pace.learn_step(num_decodes=4, num_prefill_tokens=96, seconds=1.0, now=0.0)

    assert pace.prefill_seconds(96, 0, 0, now=0.0) == pytest.approx(0.8)
    assert pace.prefill_seconds(96, 0, 4, now=0.0) == pytest.approx(1.0)


def test_long_prompts_take_as_many_steps_as_they_need(pace):
    pace.learn_step(num_decodes=0, num_prefill_tokens=100, seconds=1.0, now=0.0)
    pace.learn_encoding(50, 0.4, now=0.0)

    assert pace.prefill_seconds(250, 0, 0, now=0.0) == pytest.approx(2.5)
    assert pace.prefill_seconds(100, 100, 0, now=0.0) == pytest.approx(1.8)


def test_rows_are_free_as_answers_end(pace):
    pace.learn_step(num_decodes=4, num_prefill_tokens=0, seconds=0.1, now=0.0)
    pace.learn_answer(20, is_whole=True)

    assert pace.answers_seconds(4, 4, now=0.0) == pytest.approx(2.0)
    assert pace.answers_seconds(1, 4, now=0.0) == pytest.approx(0.5)
    assert pace.answers_seconds(0, 4, now=0.0) == 0.0


def test_an_answer_that_was_cut_says_how_long_they_are_at_least(pace):
    pace.learn_step(num_decodes=4, num_prefill_tokens=0, seconds=0.1, now=0.0)

    pace.learn_answer(10, is_whole=False)
    assert pace.answers_seconds(4, 4, now=0.0) == pytest.approx(1.0)

    pace.learn_answer(5, is_whole=False)
    assert pace.answers_seconds(4, 4, now=0.0) == pytest.approx(1.0)

    pace.learn_answer(5, is_whole=True)
    assert pace.answers_seconds(4, 4, now=0.0) < 1.0


def test_after_forgetting_nothing_is_known(pace):
    pace.learn_step(num_decodes=4, num_prefill_tokens=10, seconds=0.1, now=0.0)
    pace.learn_answer(20, is_whole=True)

    pace.forget()

    assert pace.prefill_seconds(10, 0, 0, now=0.0) is None
    assert pace.answers_seconds(4, 4, now=0.0) == 0.0
