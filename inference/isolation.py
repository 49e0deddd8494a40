"""Suspects: requests that were on board when engines were lost, and may be why.

Each runs while nothing else does, one after another whoever sent them: an engine that is lost then
shows which one it was. Between two of them the others run.
"""

from collections import deque

from inference.sequence import Request

# What runs is put aside for a suspect that nobody makes room for; what it has computed stays in the
# prefix cache for as long as it is not needed.
PATIENCE_SECONDS = 1.0


class Isolation:
    """The suspects that wait, and the one that runs.

    alone: the one that runs.
    """

    def __init__(self) -> None:
        self.alone: Request | None = None
        self._suspects: deque[Request] = deque()
        self._waiting_since = 0.0

    def __len__(self) -> int:
        """Count the suspects that wait."""
        return len(self._suspects)

    def add(self, request: Request, now: float) -> None:
        """Let a suspect wait for its turn."""
        if not self._suspects and self.alone is None:
            self._waiting_since = now
        self._suspects.append(request)

    def next(self, now: float, *, is_idle: bool) -> Request | None:
        """Tell which suspect begins now, if one does; is_idle: nothing else runs."""
        if self.alone is not None or not self._suspects:
            return None
        if not is_idle and now - self._waiting_since < PATIENCE_SECONDS:
            return None
        self.alone = self._suspects.popleft()
        return self.alone

    def end(self, request: Request, now: float) -> None:
        """Forget a request, suspect or not: it has ended."""
        if request is self.alone:
            self.alone = None
            self._waiting_since = now
        elif request in self._suspects:
            self._suspects.remove(request)
