"""Shared counters: one writer a slab, read from anywhere, and nothing lost with a writer."""

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

import pytest

from inference.ledger import (
    SLAB_BYTES,
    Family,
    Ledger,
    Place,
    Series,
    Slab,
    private_slab,
    shared_ledger,
)

EGGS = Family("counter", "eggs_total", "Eggs.", ("bird",))
BROODING = Family("gauge", "brooding", "Birds that brood.")
WEIGHTS = Family("histogram", "weight_grams", "Weights.", bounds=(10.0, 20.0))


def values(ledger: Ledger) -> dict[tuple[str, ...], tuple[float, ...]]:
    return {(series.name, *series.label_values): series.cells for series in ledger.read()}


def lay(place: Place, told: Connection) -> None:
    """Count in a child, say so, and be killed in the middle of counting on."""
    slab = Slab(place)
    slab.gauge(BROODING).set(1)
    slab.counter(EGGS, "plover").add(3)
    told.send_bytes(b"counted")
    told.recv_bytes()
    os.kill(os.getpid(), signal.SIGKILL)


def killed_child(ledger: Ledger, place: Place) -> None:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    child = spawn.Process(target=lay, args=(place, theirs))
    child.start()
    assert ours.recv_bytes() == b"counted"
    assert values(ledger)["brooding",] == (1.0,)
    ours.send_bytes(b"die")
    child.join()
    assert child.exitcode == -signal.SIGKILL


def test_counts_outlive_a_killed_writer_and_its_successor_goes_on():
    ledger = shared_ledger(2)
    for _ in range(2):
        place = ledger.lease()
        killed_child(ledger, place)
        ledger.release(place)

    assert values(ledger) == {("brooding",): (0.0,), ("eggs_total", "plover"): (6.0,)}


def test_slabs_are_read_apart_and_their_writers_do_not_meet():
    ledger = Ledger(2)
    for _ in range(2):
        Slab(ledger.lease()).counter(EGGS, "plover").add()

    assert list(ledger.read()) == [Series("counter", "eggs_total", ("plover",), (1.0,))] * 2
    with pytest.raises(IndexError):
        ledger.lease()


def test_a_histogram_counts_bounds_into_the_bucket_below_them():
    slab = private_slab()
    weights = slab.histogram(WEIGHTS)
    for weight in (5, 10, 10.5):
        weights.observe(weight)
    weights.observe(99, times=2)

    assert values(slab.ledger)["weight_grams",] == (2.0, 1.0, 2.0, 223.5)


def test_a_series_is_found_again_and_others_are_not_mixed_up():
    slab = private_slab()
    slab.counter(EGGS, "plover").add()
    slab.counter(EGGS, "plover").add()
    slab.counter(EGGS, "").add()
    slab.counter(EGGS, "Säbelschnäbler").add(5)

    assert values(slab.ledger) == {
        ("eggs_total", "plover"): (2.0,),
        ("eggs_total", ""): (1.0,),
        ("eggs_total", "Säbelschnäbler"): (5.0,),
    }


def test_a_family_of_other_buckets_gets_cells_of_its_own():
    """A successor may be of another version."""
    place = Ledger(1).lease()
    Slab(place).histogram(WEIGHTS).observe(5)
    Slab(place).histogram(WEIGHTS._replace(bounds=(1.0,))).observe(5)

    cells = [series.cells for series in place.ledger.read()]
    assert cells == [(1.0, 0.0, 0.0, 5.0), (0.0, 1.0, 5.0)]


def test_labels_must_be_those_declared():
    with pytest.raises(ValueError, match="bird"):
        private_slab().counter(EGGS)


def test_a_full_slab_keeps_what_it_has_and_loses_what_is_new():
    slab = private_slab()
    numbers = range(SLAB_BYTES // 32)
    for number in numbers:
        slab.counter(EGGS, f"bird {number:09}").add()
    slab.counter(EGGS, "bird 000000000").add()

    counts = [count for (count,) in values(slab.ledger).values()]
    assert 1000 < len(counts) < len(numbers)
    assert counts == [2.0] + [1.0] * (len(counts) - 1)
