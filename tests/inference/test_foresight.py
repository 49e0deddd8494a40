"""What becomes of predictions that fall short."""

import pytest

from inference.foresight import Foresight


@pytest.fixture
def foresight():
    return Foresight()


def overrun(foresight, times, count, now=0.0):
    for _ in range(count):
        foresight.learn(10.0, 10.0 * times, now)


def test_what_is_overrun_again_and_again_is_expected_in_the_end(foresight):
    overrun(foresight, 3.0, 40)

    assert foresight.expect(10.0, 0.0) == pytest.approx(30.0, abs=0.5)


def test_who_ends_in_time_changes_nothing(foresight):
    before = foresight.expect(10.0, 0.0)
    overrun(foresight, 0.5, 40)

    assert foresight.expect(10.0, 0.0) == before


def test_one_that_takes_for_ever_does_not_turn_everybody_away(foresight):
    overrun(foresight, 1000.0, 200)

    assert foresight.expect(10.0, 0.0) <= 40.0


def test_a_burst_is_forgotten(foresight):
    least = foresight.expect(10.0, 0.0)
    overrun(foresight, 3.0, 40)

    assert foresight.expect(10.0, 60.0) == pytest.approx(20.0, abs=0.5)
    assert foresight.expect(10.0, 6000.0) == pytest.approx(least)


def test_short_requests_say_little_of_long_ones(foresight):
    for _ in range(40):
        foresight.learn(0.1, 0.4, 0.0)

    assert foresight.expect(0.1, 0.0) == pytest.approx(0.4, abs=0.01)
    assert foresight.expect(10.0, 0.0) == Foresight().expect(10.0, 0.0)
