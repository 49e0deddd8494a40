"""Counters that outlive their process, in memory that all processes of one service share.

The memory is cut into slabs. A slab has one writer at a time, which adds without locks or system
calls; whoever comes after a dead writer goes on where that one stopped, and every process can read
all slabs at any time. A leaf: it knows no metric, and nothing of processes beyond a descriptor.

A slab is a word with the number of bytes in use, then one entry for every series: a word with the
sizes of key and cells, the key padded to words, and the cells, float64. An entry counts only once
the first word covers it, so that a writer which dies between the two leaves nothing half done.
"""

import mmap
import os
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Iterator
from multiprocessing.reduction import DupFd
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

# Untouched pages take no memory, so there is room for far more series than anyone reads.
SLAB_BYTES = 1024 * 1024
_WORD = 8

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[str, ...])


class Family(NamedTuple):
    """The declaration of a metric.

    name: with its unit, and `_total` where it counts. labels: the names of its series' labels.
    bounds: upper bounds of a histogram's buckets, ascending, without the infinite one.
    """

    kind: Kind
    name: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def num_cells(self) -> int:
        """Cells of one series; a histogram has its buckets', the infinite one's and the sum."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1


class Series(NamedTuple):
    """One series of one slab. cells: a value, or the buckets' counts, each alone, and the sum."""

    kind: str
    name: str
    label_values: tuple[str, ...]
    cells: tuple[float, ...]


class _Entry(NamedTuple):
    """Where a series is; first_cell counts words from the slab's start."""

    key: tuple[str, ...]
    first_cell: int
    num_cells: int


class Counter:
    """One series that only grows."""

    __slots__ = ("_cells", "_place")

    def __init__(self, cells: "memoryview[float]", place: int) -> None:
        self._cells = cells
        self._place = place

    @property
    def value(self) -> float:
        """What was counted so far, by earlier writers as well."""
        return self._cells[self._place]

    def add(self, amount: float = 1.0) -> None:
        """Count."""
        self._cells[self._place] += amount


class Gauge(Counter):
    """One series that says how things are now; it starts at 0 with every writer."""

    __slots__ = ()

    def set(self, value: float) -> None:
        """Say it."""
        self._cells[self._place] = value


class Histogram:
    """One series of counted sizes."""

    __slots__ = ("_bounds", "_cells", "_place", "_sum")

    def __init__(self, cells: "memoryview[float]", place: int, bounds: tuple[float, ...]) -> None:
        self._cells = cells
        self._place = place
        self._bounds = bounds
        self._sum = place + len(bounds) + 1

    def observe(self, size: float, times: int = 1) -> None:
        """Count a size, so many times."""
        self._cells[self._place + bisect_left(self._bounds, size)] += times
        self._cells[self._sum] += size * times


class Ledger:
    """The memory, as any process sees it; sent to a child that is being spawned, it is the same.

    In the process that made it, it also knows which slabs are taken.
    """

    def __init__(self, num_slabs: int, descriptor: int = -1) -> None:
        """Map the memory behind a descriptor; without one it is this process's own."""
        self.num_slabs = num_slabs
        self._descriptor = descriptor
        self._memory = memoryview(mmap.mmap(descriptor, num_slabs * SLAB_BYTES))
        self._free = list(range(num_slabs))
        self._readers: dict[int, _Reader] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a spawned child as a descriptor; nothing else can send it."""
        return _attach, (self.num_slabs, DupFd(self._descriptor))

    def lease(self) -> "Place":
        """Take a slab for one writer.

        Raises:
            IndexError: all are taken.
        """
        return Place(self, self._free.pop(0))

    def release(self, place: "Place") -> None:
        """Give a slab back whose writer has ended; what it said of itself then ends, too."""
        self._forget_gauges(place.number)
        self._free.insert(0, place.number)

    def read(self) -> Iterator[Series]:
        """Give every series of every slab as it is now."""
        for number in range(self.num_slabs):
            yield from self._reader(number).series()

    def memory_of(self, number: int) -> memoryview:
        """Give the bytes of one slab."""
        return self._memory[number * SLAB_BYTES : (number + 1) * SLAB_BYTES]

    def _reader(self, number: int) -> "_Reader":
        if number not in self._readers:
            self._readers[number] = _Reader(self.memory_of(number))
        return self._readers[number]

    def _forget_gauges(self, number: int) -> None:
        cells = self.memory_of(number).cast("d")
        for entry in self._reader(number).entries():
            if entry.key[0] == "gauge":
                cells[entry.first_cell] = 0.0


class Place(NamedTuple):
    """A slab that is leased; its writer opens it, in whichever process that runs."""

    ledger: Ledger
    number: int


class Slab:
    """A slab as its writer has it. Only one thread of one process may write to it.

    Once it is full, because some label takes values without end, new series are lost.
    """

    def __init__(self, place: Place) -> None:
        """Take over, with all that earlier writers have counted."""
        memory = place.ledger.memory_of(place.number)
        self.ledger = place.ledger
        self._memory = memory
        self._words = memory.cast("Q")
        self._cells = memory.cast("d")
        self._places = {
            (entry.key, entry.num_cells): entry.first_cell for entry in _Reader(memory).entries()
        }

    def counter(self, family: Family, *label_values: str) -> Counter:
        """Give a counter's series, made at 0 where it is new."""
        return Counter(*self._locate(family, label_values))

    def gauge(self, family: Family, *label_values: str) -> Gauge:
        """Give a gauge's series, made at 0 where it is new."""
        return Gauge(*self._locate(family, label_values))

    def histogram(self, family: Family, *label_values: str) -> Histogram:
        """Give a histogram's series, made empty where it is new."""
        return Histogram(*self._locate(family, label_values), family.bounds)

    def _locate(
        self, family: Family, label_values: tuple[str, ...]
    ) -> tuple["memoryview[float]", int]:
        """Find a series' cells and the first one's place; a full slab has only unread ones."""
        if len(label_values) != len(family.labels):
            raise ValueError(f"{family.name} has the labels {family.labels}")
        key = (family.kind, family.name, *label_values)
        place = self._places.get((key, family.num_cells))
        if place is None:
            place = self._append(key, family.num_cells)
            if place is None:
                return memoryview(bytearray(family.num_cells * _WORD)).cast("d"), 0
            self._places[key, family.num_cells] = place
        return self._cells, place

    def _append(self, key: tuple[str, ...], num_cells: int) -> int | None:
        text = _encoder.encode(key)
        start = _WORD + self._words[0]
        key_end = start + _WORD + len(text)
        first_cell = -(-key_end // _WORD)
        end = (first_cell + num_cells) * _WORD
        if end > SLAB_BYTES:
            return None
        self._words[start // _WORD] = len(text) << 32 | num_cells
        self._memory[start + _WORD : key_end] = text
        for cell in range(first_cell, first_cell + num_cells):
            self._cells[cell] = 0.0
        self._words[0] = end - _WORD
        return first_cell


class _Reader:
    """Reads a slab that somebody else may be writing to; remembers what it has understood."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._words = memory.cast("Q")
        self._cells = memory.cast("d")
        self._known: list[_Entry] = []
        self._end = _WORD

    def series(self) -> Iterator[Series]:
        for (kind, name, *label_values), first, num_cells in self.entries():
            cells = tuple(self._cells[first : first + num_cells])
            yield Series(kind, name, tuple(label_values), cells)

    def entries(self) -> list[_Entry]:
        used_end = _WORD + self._words[0]
        while self._end < used_end:
            sizes = self._words[self._end // _WORD]
            key_start = self._end + _WORD
            key_end = key_start + (sizes >> 32)
            first_cell = -(-key_end // _WORD)
            num_cells = sizes & 0xFFFFFFFF
            key = _decoder.decode(self._memory[key_start:key_end])
            self._known.append(_Entry(key, first_cell, num_cells))
            self._end = (first_cell + num_cells) * _WORD
        return self._known


def shared_ledger(num_slabs: int) -> Ledger:
    """Make memory that is gone with the last process that has it, however that ends."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("loupe-ledger")
    else:
        with tempfile.TemporaryFile() as file:  # without a name from the start
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, num_slabs * SLAB_BYTES)
    return Ledger(num_slabs, descriptor)


def private_slab() -> Slab:
    """Make a slab for one process alone, such as a test or a notebook."""
    return Slab(Ledger(1).lease())


def _attach(num_slabs: int, descriptor: Any) -> Ledger:  # noqa: ANN401 - a name the library hides
    return Ledger(num_slabs, descriptor.detach())
