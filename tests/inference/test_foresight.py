"""What becomes of predictions that fall short."""

import pytest

from inference.foresight import Foresight


@pytest.fixture
def foresight():
    return Foresight()


def overrun(foresight, times, count, now=0.0):
    for _ in range(count):
        foresight.learn(10.0, 10.0 * times, now)


def test_what_is_overrun_again_and_again_is_predicted_in_the_end(foresight):
    overrun(foresight, 3.0, 40)

    assert foresight.factor(0.0) == pytest.approx(3.0, abs=0.05)


def test_who_ends_in_time_changes_nothing(foresight):
    before = foresight.factor(0.0)
    overrun(foresight, 0.5, 40)

    assert foresight.factor(0.0) == before


def test_one_that_takes_for_ever_does_not_turn_everybody_away(foresight):
    overrun(foresight, 1000.0, 200)

    assert foresight.factor(0.0) <= 4.0


def test_a_burst_is_forgotten(foresight):
    least = foresight.factor(0.0)
    overrun(foresight, 3.0, 40)

    assert foresight.factor(60.0) == pytest.approx(least + (3.0 - least) / 2, abs=0.05)
    assert foresight.factor(6000.0) == pytest.approx(least)


def test_the_noise_of_short_times_says_little(foresight):
    foresight.learn(0.001, 0.05, 0.0)

    assert foresight.factor(0.0) == Foresight().factor(0.0)
