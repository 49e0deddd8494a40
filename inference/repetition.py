"""Tells when a sequence only repeats itself.

Knows token ids, nothing of text: a loop is the same tokens over and over, with a short period.
"""

from collections import deque

MAX_PERIOD = 64
MIN_TOKENS = 256
MIN_PERIODS = 16


class RepetitionGuard:
    """Watches one sequence's output for a loop; exact, in time that does not grow with its length.

    A loop is a tail of the output that has some period of 1 to MAX_PERIOD tokens and spans at least
    MIN_TOKENS tokens and MIN_PERIODS periods. Honest output repeats too (a matrix of zeros, a long
    number, rows of an empty form), so the guard waits until a loop is all but certain: 256 times
    the same token, 16 times the same 64.
    """

    def __init__(self, output_token_ids: list[int] | None = None) -> None:
        self._num_tokens = 0
        self._recent: dict[int, deque[int]] = {}  # token id -> its last MAX_PERIOD tokens' indices
        self._repeated: dict[int, int] = {}  # period -> length of the tail that has it
        for token_id in output_token_ids or ():
            self.accept(token_id)

    @property
    def is_looping(self) -> bool:
        """True while the output ends in a loop."""
        return any(
            length >= max(MIN_TOKENS, MIN_PERIODS * period)
            for period, length in self._repeated.items()
        )

    def accept(self, token_id: int) -> bool:
        """Add the newest token; returns is_looping."""
        recent = self._recent.setdefault(token_id, deque())
        while recent and self._num_tokens - recent[0] > MAX_PERIOD:
            recent.popleft()
        repeated = {}
        for index in recent:
            period = self._num_tokens - index
            repeated[period] = self._repeated.get(period, period) + 1
        self._repeated = repeated
        recent.append(self._num_tokens)
        self._num_tokens += 1
        return self.is_looping
