import pytest

from inference.recent_work import RecentWork


def test_a_caller_is_light_beside_one_who_was_given_four_times_as_much():
    recent = RecentWork()
    recent.add("heavy", 1000, now=0)
    recent.add("light", 200, now=0)
    recent.add("middle", 300, now=0)

    assert recent.light_ones({"heavy", "light", "middle", "new"}, now=0) == {"light", "new"}
    assert recent.light_ones({"light", "middle"}, now=0) == set()
    assert recent.light_ones({"light"}, now=0) == set()
    assert recent.light_ones(set(), now=0) == set()


@pytest.mark.parametrize(("seconds", "light"), [(0, {"late"}), (10, {"late"}), (30, set())])
def test_what_was_given_long_ago_counts_no_more(seconds, light):
    recent = RecentWork()
    recent.add("early", 1000, now=0)
    recent.add("late", 100, now=seconds)

    assert recent.light_ones({"early", "late"}, now=seconds) == light


def test_callers_without_number_take_no_memory_without_bound():
    recent = RecentWork()
    recent.add("heavy", 10**6, now=0)
    for number in range(5000):
        recent.add(str(number), 1, now=number / 1000)

    assert len(recent._given) <= 1024
    assert recent.light_ones({"heavy", "4999"}, now=5) == {"4999"}
