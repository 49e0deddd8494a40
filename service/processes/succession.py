"""Who takes whose place: workers are replaced one after another, each by one that is ready.

So at most one process more than usual is there at any time. Knows no signals and starts nothing.
"""

from collections import deque

from service.processes.child import Child


class Succession:
    """The places that are to get a new worker, and the change that is under way.

    successor: started, and not ready yet.
    """

    def __init__(self) -> None:
        self.successor: Child | None = None
        self._leaving: Child | None = None
        self._wanted: deque[str] = deque()

    def want(self, name: str) -> None:
        """Have a place's worker replaced once the changes before it are done."""
        if name not in self._wanted:
            self._wanted.append(name)

    def due(self) -> str | None:
        """Take the next place off the list; None while a change is under way."""
        if self.members() or not self._wanted:
            return None
        return self._wanted.popleft()

    def begin(self, successor: Child) -> None:
        """Note who was started to take a place."""
        self.successor = successor

    def succeeded(self, before: Child | None) -> None:
        """Note that the successor is in its place, and who leaves it."""
        self.successor = None
        self._leaving = before

    def take(self, name: str) -> Child | None:
        """Give the successor to a place that is empty before it is ready."""
        if self.successor is None or self.successor.name != name:
            return None
        successor, self.successor = self.successor, None
        return successor

    def members(self) -> list[Child]:
        """List the processes that are in no place."""
        return [child for child in (self.successor, self._leaving) if child is not None]

    def lose(self, child: Child) -> bool:
        """Note a member's end; tell whether it was a successor that never got ready.

        Then the rest of the list is dropped: others would fare no better, and those in place serve.
        """
        if child is self._leaving:
            self._leaving = None
            return False
        self.successor = None
        self._wanted.clear()
        return True
