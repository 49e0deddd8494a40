"""What the engine has just refused, so that its like is refused before pictures are decoded.

Under overload the decoding of what is refused anyway would take the time of what is not.
"""

import time
from typing import NamedTuple

from service.errors import DeadlineUnreachable, Overloaded

# As long as a verdict stands: a few steps of the engine, in which little can change.
_STANDS_SECONDS = 0.05
_MAX_CALLERS = 1024


class Demand(NamedTuple):
    """What a request asks for, as far as can be told before its pictures are decoded."""

    num_media: int
    seconds_left: float


class _Verdict(NamedTuple):
    """A refusal, and what it was about."""

    error: Overloaded | DeadlineUnreachable
    demand: Demand
    until: float


class Verdicts:
    """The latest refusal of each caller; one per worker."""

    def __init__(self) -> None:
        self._latest: dict[str, _Verdict] = {}

    def note(self, caller: str, error: Overloaded | DeadlineUnreachable, demand: Demand) -> None:
        """Remember a refusal of the engine's."""
        if len(self._latest) >= _MAX_CALLERS:
            self._latest.clear()
        until = time.monotonic() + min(_STANDS_SECONDS, error.retry_after_seconds or 0.0)
        self._latest[caller] = _Verdict(error, demand, until)

    def check(self, caller: str, demand: Demand) -> None:
        """Refuse what brings as much as the latest refused request and has no more time.

        Raises:
            Overloaded, DeadlineUnreachable: as the engine has just done.
        """
        verdict = self._latest.get(caller)
        if verdict is None or demand.num_media < max(verdict.demand.num_media, 1):
            return
        if time.monotonic() > verdict.until:
            del self._latest[caller]
            return
        in_time = isinstance(verdict.error, DeadlineUnreachable)
        if in_time and demand.seconds_left > verdict.demand.seconds_left:
            return
        raise type(verdict.error)(verdict.error.retry_after_seconds or 0.0)
