"""What each caller was given of late, to tell who asks for little beside one who asks for much.

Half of what counts is forgotten every ten seconds. Plain Python: names, work, seconds.
"""

from collections.abc import Collection
from typing import NamedTuple

_HALF_LIFE_SECONDS = 10.0
# Equal callers are never this far apart for long, so none of them is kept waiting for another.
_LIGHT_FACTOR = 4.0
_MAX_CALLERS = 1024


class _Given(NamedTuple):
    """Work, as it counted at that time."""

    work: float
    time: float

    def at(self, now: float) -> float:
        """What of it still counts."""
        return self.work * 0.5 ** ((now - self.time) / _HALF_LIFE_SECONDS)


class RecentWork:
    """Work by caller; times are on the engine's clock."""

    def __init__(self) -> None:
        self._given: dict[str, _Given] = {}

    def add(self, caller: str, work: float, now: float) -> None:
        """Count work, divided by the caller's weight."""
        if caller not in self._given and len(self._given) >= _MAX_CALLERS:
            self._forget_least(now)
        self._given[caller] = _Given(self._of(caller, now) + work, now)

    def light_ones(self, callers: Collection[str], now: float) -> set[str]:
        """Name those of these callers beside whom another of them was given much more."""
        if len(callers) < 2:
            return set()
        given = {caller: self._of(caller, now) for caller in callers}
        most = max(given.values())
        return {caller for caller, work in given.items() if _LIGHT_FACTOR * work < most}

    def _of(self, caller: str, now: float) -> float:
        known = self._given.get(caller)
        return 0.0 if known is None else known.at(now)

    def _forget_least(self, now: float) -> None:
        ordered = sorted(self._given, key=lambda caller: self._of(caller, now))
        for caller in ordered[: _MAX_CALLERS // 2]:
            del self._given[caller]
