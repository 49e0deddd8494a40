"""The supervisor's part of the metrics: it owns the ledger and counts what processes it lost."""

from collections.abc import Sequence

from inference.ledger import Counter, Place, Slab, shared_ledger
from service.metrics import families as family
from service.metrics.memory import resident_bytes

_ENGINE = "inference"


class ProcessMetrics:
    """The ledger from before the first child until after the last."""

    def __init__(self, names: Sequence[str]) -> None:
        """Make room for each child, for each one's successor, and for the supervisor itself."""
        self._ledger = shared_ledger(1 + 2 * len(names))
        slab = Slab(self._ledger.lease())
        self._restarts = {name: _restarts(slab, name) for name in names}
        self._rss = slab.gauge(family.SUPERVISOR_RSS)

    def lease(self) -> Place:
        """Take a slab for a child that is to be started."""
        return self._ledger.lease()

    def release(self, place: Place) -> None:
        """Take the slab of a child that has ended back; the next one goes on where it stopped."""
        self._ledger.release(place)

    def restarts(self, name: str) -> None:
        """Count that a process which was lost is replaced."""
        self._restarts[name].add()

    def note_memory(self) -> None:
        """Say how much memory the supervisor holds."""
        self._rss.set(resident_bytes())


def _restarts(slab: Slab, name: str) -> Counter:
    if name == _ENGINE:
        return slab.counter(family.ENGINE_RESTARTS)
    return slab.counter(family.WORKER_RESTARTS, name)
