"""A supervisor that is stopped in its tracks for long: its children go on without it."""

import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from inference.control import Heartbeat
from inference.frames import decode_child_message, encode
from inference.main import has_room


@pytest.fixture
def pipe() -> Iterator[tuple[Connection, Connection]]:
    supervisors, childs = multiprocessing.get_context("spawn").Pipe()
    with supervisors, childs:
        yield supervisors, childs


def beat_until_full(child: Connection) -> int:
    for number in range(100_000):
        if not has_room(child):
            return number
        child.send_bytes(encode(Heartbeat()))
    raise AssertionError("it took everything")


def test_a_pipe_that_nobody_reads_takes_some_heartbeats_and_blocks_nobody(pipe):
    assert 0 < beat_until_full(pipe[1]) < 100_000


def test_whoever_wakes_up_hears_that_its_child_lives(pipe):
    supervisor, child = pipe
    num_sent = beat_until_full(child)

    for _ in range(num_sent):
        assert decode_child_message(supervisor.recv_bytes()) == Heartbeat()

    assert has_room(child)


def test_a_dead_supervisors_pipe_has_room_so_that_the_write_tells(pipe):
    supervisor, child = pipe
    beat_until_full(child)
    supervisor.close()

    assert has_room(child)
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        child.send_bytes(encode(Heartbeat()))
