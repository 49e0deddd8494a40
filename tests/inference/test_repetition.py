"""The repetition guard: sure loops end, honest repetition does not."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.repetition import MAX_PERIOD, MIN_PERIODS, MIN_TOKENS, RepetitionGuard


def ends_in_loop(token_ids: list[int]) -> bool:
    """The definition, word for word."""
    for period in range(1, MAX_PERIOD + 1):
        length = max(MIN_TOKENS, MIN_PERIODS * period)
        tail = token_ids[-length:]
        if len(tail) == length and tail[period:] == tail[:-period]:
            return True
    return False


def first_loop(token_ids: list[int]) -> int | None:
    guard = RepetitionGuard()
    return next((i for i, token_id in enumerate(token_ids) if guard.accept(token_id)), None)


@given(
    st.lists(st.integers(0, 2), max_size=40),
    st.lists(st.integers(0, 2), min_size=1, max_size=70),
    st.integers(0, 1300),
    st.lists(st.integers(0, 2), max_size=4),
)
def test_guard_agrees_with_its_definition_at_every_token(
    head: list[int], unit: list[int], length: int, tail: list[int]
) -> None:
    repeated = (unit * (length // len(unit) + 1))[:length]
    token_ids = head + repeated + tail
    guard = RepetitionGuard()
    verdicts = [guard.accept(token_id) for token_id in token_ids]

    checked = {*range(0, len(token_ids), 37), *range(max(0, len(token_ids) - 6), len(token_ids))}
    first = verdicts.index(True) if True in verdicts else 0
    checked |= {i for i in (first - 1, first) if 0 <= i < len(token_ids)}
    assert {i: ends_in_loop(token_ids[: i + 1]) for i in checked} == {
        i: verdicts[i] for i in checked
    }


@pytest.mark.parametrize("period", [1, 2, 16, 17, 63, 64])
def test_loop_is_seen_at_its_last_needed_token(period: int) -> None:
    token_ids = [1000, 1001] + [i % period for i in range(3000)]
    needed = max(MIN_TOKENS, MIN_PERIODS * period)

    assert 2 + needed - 1 == first_loop(token_ids)


def test_loop_longer_than_the_longest_period_is_left_alone() -> None:
    assert first_loop([i % (MAX_PERIOD + 1) for i in range(3000)]) is None


def test_one_different_token_starts_the_count_again() -> None:
    assert first_loop([7] * (MIN_TOKENS - 1) + [8] + [7] * (MIN_TOKENS - 1)) is None


def digits(count: int) -> list[int]:
    return [48] * count


def list_of_zeros(count: int) -> list[int]:
    return [91, *([48, 44] * count)[:-1], 93]


def zero_matrix(rows: int, columns: int) -> list[int]:
    return [91, *([*list_of_zeros(columns), 44] * rows)[:-1], 93]


def boxes(count: int) -> list[int]:
    rng = random.Random(0)
    frame = [1, 2, 3, 4]
    coordinates = [[48 + rng.randrange(10) for _ in range(12)] for _ in range(count)]
    return [token for numbers in coordinates for token in (*frame, *numbers, 5, 6, 7)]


def table(rows: int) -> list[int]:
    return [token for row in range(rows) for token in (*[9, 10] * 5, 48 + row % 10, 48 + row // 10)]


@pytest.mark.parametrize(
    "token_ids",
    [
        pytest.param(digits(200), id="digit string"),
        pytest.param(list_of_zeros(120), id="list of zeros"),
        pytest.param(zero_matrix(10, 10), id="matrix of zeros"),
        pytest.param(boxes(300), id="boxes"),
        pytest.param([45, 124] * 60, id="table rule"),
        pytest.param(table(300), id="numbered table"),
        pytest.param([9, 9, 9, 10] * 40, id="empty form rows"),
    ],
)
def test_honest_repetition_goes_on(token_ids: list[int]) -> None:
    assert first_loop(token_ids) is None


def test_guard_rebuilt_from_output_goes_on_counting() -> None:
    whole = RepetitionGuard([5] * MIN_TOKENS)
    resumed = RepetitionGuard([5] * (MIN_TOKENS - 1))

    assert whole.is_looping
    assert not resumed.is_looping
    assert resumed.accept(5)
