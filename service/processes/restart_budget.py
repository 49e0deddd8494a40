"""How often a process may be restarted, and after which pause."""

from collections import deque

_MAX_PAUSE_SECONDS = 30.0


class RestartBudget:
    """So many restarts within a sliding span of time, each after a longer pause."""

    def __init__(self, limit: int, window_seconds: float) -> None:
        self._limit = limit
        self._window_seconds = window_seconds
        self._spent: deque[float] = deque()

    def spend(self, now: float) -> float | None:
        """Take one restart; the seconds to wait before it, or None when there is none left."""
        while self._spent and now - self._spent[0] > self._window_seconds:
            self._spent.popleft()
        if len(self._spent) >= self._limit:
            return None
        self._spent.append(now)
        return min(_MAX_PAUSE_SECONDS, float(2 ** (len(self._spent) - 1) - 1))
