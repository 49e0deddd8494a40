"""The cache of encoded pictures: which are there, which are needed, what may go. No torch.

Entries are pinned by the sequences whose prefill still needs them; unpinned ones stay until their
bytes are needed, least recently used first. Pinned entries may pass the cap only when nothing else
is pinned, so that one very large picture still runs, alone.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

EmbeddingKey: TypeAlias = tuple[str, bytes]
Features = TypeVar("Features")


@dataclass(slots=True)
class _Entry(Generic[Features]):
    num_bytes: int
    features: Features | None = None
    num_pins: int = 0


class EmbeddingCache(Generic[Features]):
    """Features of pictures by tenant and content, capped in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._num_pinned_bytes = 0
        self._entries: OrderedDict[EmbeddingKey, _Entry[Features]] = OrderedDict()

    def __contains__(self, key: EmbeddingKey) -> bool:
        """Whether it is there or promised by a reservation in this step."""
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_pinned_bytes(self) -> int:
        """Bytes that cannot be evicted now."""
        return self._num_pinned_bytes

    def has_room(self, num_bytes: int) -> bool:
        """Whether a reservation of this size can be made now."""
        return not self._num_pinned_bytes or self._num_pinned_bytes + num_bytes <= self.max_bytes

    def reserve(self, key: EmbeddingKey, num_bytes: int) -> None:
        """Promise an entry that will be stored in this step; evicts what is in its way."""
        while self.num_bytes + num_bytes > self.max_bytes and self._evict_one():
            pass
        self._entries[key] = _Entry(num_bytes)
        self.num_bytes += num_bytes

    def is_stored(self, key: EmbeddingKey) -> bool:
        """Whether the features of a reserved entry have come."""
        return self._entries[key].features is not None

    def store(self, key: EmbeddingKey, features: Features) -> None:
        """Keep the features of a reserved entry."""
        self._entries[key].features = features

    def get(self, key: EmbeddingKey) -> Features:
        """The features of a stored entry, which becomes the most recently used.

        Raises:
            KeyError: not stored.
        """
        entry = self._entries[key]
        if entry.features is None:
            raise KeyError(key)
        self._entries.move_to_end(key)
        return entry.features

    def pin(self, key: EmbeddingKey) -> None:
        """Keep an entry until as many `unpin` calls."""
        entry = self._entries[key]
        if entry.num_pins == 0:
            self._num_pinned_bytes += entry.num_bytes
        entry.num_pins += 1

    def unpin(self, key: EmbeddingKey) -> None:
        """Take one pin off; an entry whose encoding never came goes at once."""
        entry = self._entries[key]
        entry.num_pins -= 1
        if entry.num_pins == 0:
            self._num_pinned_bytes -= entry.num_bytes
            if entry.features is None or self.num_bytes > self.max_bytes:
                self._drop(key)

    def clear(self) -> None:
        """Drop everything that is not pinned."""
        while self._evict_one():
            pass

    def _evict_one(self) -> bool:
        for key, entry in self._entries.items():
            if entry.num_pins == 0:
                self._drop(key)
                return True
        return False

    def _drop(self, key: EmbeddingKey) -> None:
        self.num_bytes -= self._entries.pop(key).num_bytes
