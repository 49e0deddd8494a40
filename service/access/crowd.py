"""How many requests are open in this worker, in all and for each key.

It keeps a worker's memory and descriptors; the engine has the queue, and the quotas over all
workers.
"""

from collections import Counter

from service.access.caller import Caller
from service.errors import Overloaded
from service.http.connection_limits import ConnectionLimits

_RETRY_SECONDS = 1.0


class Crowd:
    """The open requests; one place each."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._num_open = 0
        self._num_open_of: Counter[str] = Counter()

    def enter(self, caller: Caller) -> None:
        """Take a place, which must be left.

        Raises:
            Overloaded: there is none, or this key has its share.
        """
        name, limits = caller.name, self._limits
        if self._num_open >= limits.max_open_requests:
            raise Overloaded(_RETRY_SECONDS)
        if name and self._num_open_of[name] >= limits.max_open_requests_per_key:
            raise Overloaded(_RETRY_SECONDS)
        self._num_open += 1
        self._num_open_of[name] += 1

    def leave(self, caller: Caller) -> None:
        """Give the place back."""
        self._num_open -= 1
        self._num_open_of[caller.name] -= 1
        if not self._num_open_of[caller.name]:
            del self._num_open_of[caller.name]
