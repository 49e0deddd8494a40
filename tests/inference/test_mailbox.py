"""The engine's end of the wire, over real Unix sockets."""

import errno
import math
import os
import socket
import struct
import threading
import time
from contextlib import closing
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener
from typing import Any

import msgspec
import pytest

from inference import mailbox as mailbox_module
from inference.backlog import Ticket
from inference.frames import decode_engine_message, encode
from inference.mailbox import Gone, Mailbox
from inference.protocol import (
    PROTOCOL_VERSION,
    Cancel,
    Delta,
    Generate,
    Grammar,
    Isolated,
    Limits,
    Outputs,
    Ready,
    RefusalCode,
    Refused,
    SamplingParams,
    Stats,
    Vision,
)
from inference.sequence import Owner

KEY = b"a key of thirty-two bytes, or so"
PATIENCE_SECONDS = 20
LIMITS = Limits(
    block_size=16, num_blocks=4, max_num_seqs=2, max_num_batched_tokens=8, max_queued_requests=2
)
REQUEST = Generate(
    request_id="r",
    prompt_token_ids=list(range(40)),
    sampling=SamplingParams(
        max_tokens=5, temperature=0.5, logit_bias={3: 1.5}, grammar=Grammar(regex="a+"), seed=3
    ),
    visions=[
        Vision(height=32, width=32, pixels=memoryview(bytes(3072)), content_hash=bytes(32)),
    ],
    tenant="t",
    output_prefixes=[[1, 2]],
)


@pytest.fixture
def mailbox(tmp_path):
    with closing(Mailbox(str(tmp_path / "socket"), KEY)) as opened:
        yield opened


@pytest.fixture
def connect(tmp_path, mailbox):
    """Connect as a worker; closed at the end."""
    connections = []

    def make():
        connections.append(Client(str(tmp_path / "socket"), "AF_UNIX", authkey=KEY))
        return connections[-1]

    yield make
    for connection in connections:
        connection.close()


@pytest.fixture
def ready(kit):
    return Ready(protocol_version=PROTOCOL_VERSION, engine_id="e", model=kit.facts, limits=LIMITS)


def letters(mailbox, count):
    """The next letters, as many as asked for."""
    got = []
    for _ in range(200):
        got += mailbox.receive(PATIENCE_SECONDS / 200)
        if len(got) >= count:
            return got
    raise AssertionError(f"{got} are not {count} letters")


def read(connection) -> Any:
    assert connection.poll(PATIENCE_SECONDS)
    return decode_engine_message(connection.recv_bytes())


def cancel(name):
    return encode(Cancel(request_id=name))


def test_what_a_worker_sends_arrives_in_order(mailbox, connect):
    worker = connect()
    worker.send_bytes(encode(REQUEST))
    worker.send_bytes(cancel("r"))

    first, second = letters(mailbox, 2)

    assert first == (0, REQUEST)
    assert second == (0, Cancel(request_id="r"))


def test_an_empty_mailbox_does_not_wait_when_told_not_to(mailbox):
    assert mailbox.receive(0) == []


def test_answers_go_to_who_asked(mailbox, connect):
    """Two workers may use the same request ids."""
    workers = connect(), connect()
    for worker in workers:
        worker.send_bytes(encode(REQUEST))
    owners = [owner for owner, _ in letters(mailbox, 2)]
    assert len(set(owners)) == 2

    for owner in owners:
        delta = Delta(request_id="r", token_ids=[owner])
        mailbox.send(owner, Outputs(deltas=[delta]))

    answers = {read(worker).deltas[0].token_ids[0] for worker in workers}
    assert answers == set(owners)


def test_the_greeting_comes_first_whoever_comes_first(mailbox, connect, ready):
    early = connect()
    early.send_bytes(cancel("x"))
    letters(mailbox, 1)
    mailbox.greet(ready)
    late = connect()
    late.send_bytes(cancel("x"))
    letters(mailbox, 1)
    mailbox.broadcast(Stats(num_steps=7))

    for worker in (early, late):
        assert read(worker) == ready
        assert read(worker) == Stats(num_steps=7)


def test_no_figures_overtake_the_greeting(mailbox, connect, ready):
    mailbox.greet(ready)
    done = threading.Event()

    def broadcast():
        while not done.wait(0.0001):
            mailbox.broadcast(Stats())

    thread = threading.Thread(target=broadcast)
    thread.start()
    try:
        assert all(read(connect()) == ready for _ in range(30))
    finally:
        done.set()
        thread.join()


def test_a_message_to_a_worker_that_is_gone_goes_nowhere(mailbox, connect):
    worker = connect()
    worker.send_bytes(cancel("r"))
    letters(mailbox, 1)
    worker.close()
    assert letters(mailbox, 1) == [(0, Gone())]

    mailbox.send(0, Stats())
    mailbox.send(99, Stats())


def test_a_wrong_key_is_not_heard(mailbox, connect, tmp_path):
    with pytest.raises(AuthenticationError):
        Client(str(tmp_path / "socket"), "AF_UNIX", authkey=b"another key")
    connect().send_bytes(cancel("r"))

    assert [message for _, message in letters(mailbox, 1)] == [Cancel(request_id="r")]


@pytest.mark.parametrize("said", [b"", b"\x00", struct.pack("!i", 1 << 30), b"GET / HTTP/1.1\r\n"])
def test_who_says_nothing_of_sense_delays_nobody(mailbox, connect, tmp_path, said):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(tmp_path / "socket"))
        silent.sendall(said)
        connect().send_bytes(cancel("r"))

        assert [message for _, message in letters(mailbox, 1)] == [Cancel(request_id="r")]


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(struct.pack("!i", 100) + b"half", id="inside-a-frame"),
        pytest.param(b"\x00\x00", id="inside-a-length"),
        pytest.param(struct.pack("!i", -1) + struct.pack("!Q", 1 << 60), id="a-length-too-large"),
        pytest.param(struct.pack("!i", -7), id="a-negative-length"),
    ],
)
def test_a_worker_that_dies_in_a_frame_is_gone(mailbox, connect, cut):
    worker, other = connect(), connect()
    worker.send_bytes(cancel("r"))
    ((owner, _),) = letters(mailbox, 1)
    os.write(worker.fileno(), cut)
    worker.close()

    assert letters(mailbox, 1) == [(owner, Gone())]
    other.send_bytes(cancel("other"))
    assert letters(mailbox, 1)[0][1] == Cancel(request_id="other")


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"garbage",
        encode(Stats()),
        b"\x81\xa4type\xa6cancel",
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        encode(REQUEST)[:-1],
    ],
    ids=["empty", "reserved", "text", "an-engines", "half", "deep", "endless", "cut"],
)
def test_a_bad_frame_costs_its_sender_the_connection_and_nobody_else(mailbox, connect, frame):
    bad, good = connect(), connect()
    bad.send_bytes(frame)

    ((_, message),) = letters(mailbox, 1)

    assert message == Gone()
    with pytest.raises((EOFError, ConnectionError)):
        bad.recv_bytes()
    good.send_bytes(cancel("r"))
    assert letters(mailbox, 1)[0][1] == Cancel(request_id="r")


def test_a_worker_that_does_not_read_is_hung_up_on_and_others_go_on(mailbox, connect, monkeypatch):
    monkeypatch.setattr(mailbox_module, "MAX_QUEUED_FRAMES", 8)
    stuck, reading = connect(), connect()
    stuck.send_bytes(cancel("stuck"))
    ((owner, _),) = letters(mailbox, 1)
    reading.send_bytes(cancel("reading"))
    ((other, _),) = letters(mailbox, 1)
    large = Refused(request_id="x" * 100_000, code=RefusalCode.INTERNAL)

    for _ in range(60):
        mailbox.send(owner, large)

    assert letters(mailbox, 1) == [(owner, Gone())]
    mailbox.send(other, Stats(num_steps=3))
    assert read(reading) == Stats(num_steps=3)


def test_a_shortage_of_descriptors_passes(tmp_path, monkeypatch):
    failures = iter([OSError(errno.EMFILE, "too many open files")] * 2)
    accept = Listener.accept

    def failing(listener):
        for failure in failures:
            raise failure
        return accept(listener)

    monkeypatch.setattr(Listener, "accept", failing)
    with (
        closing(Mailbox(str(tmp_path / "socket"), KEY)) as mailbox,
        closing(Client(str(tmp_path / "socket"), "AF_UNIX", authkey=KEY)) as worker,
    ):
        worker.send_bytes(cancel("r"))

        assert letters(mailbox, 1)[0][1] == Cancel(request_id="r")


def test_a_shortage_of_threads_costs_who_comes_then_and_passes(mailbox, connect, monkeypatch):
    failures = iter([RuntimeError("can't start new thread"), MemoryError()])
    start = threading.Thread.start

    def failing(thread):
        if thread.name == "reader":
            for failure in failures:
                raise failure
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)
    for _ in range(2):
        with pytest.raises((EOFError, ConnectionError)):
            connect()

    connect().send_bytes(cancel("r"))
    assert letters(mailbox, 1)[0][1] == Cancel(request_id="r")


def test_a_thread_that_never_starts_is_told_of(mailbox, connect, monkeypatch):
    release = threading.Event()
    start = threading.Thread.start

    def hanging(thread):
        if thread.name == "reader":
            release.wait(PATIENCE_SECONDS)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", hanging)
    monkeypatch.setattr("inference.mailbox._START_SECONDS", 0.0)
    coming = threading.Thread(target=connect)
    coming.start()

    with pytest.raises(MemoryError):
        keep_for_ever(mailbox)
    release.set()
    coming.join(PATIENCE_SECONDS)


def keep_for_ever(mailbox):
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        mailbox.keep_address()
        time.sleep(0.01)


def test_a_refusal_does_not_wait_for_whoever_reads_the_mail(mailbox, connect, ready):
    """Nobody does: the reading thread answers, and only what was let in is mail."""

    def admit(generate):
        if generate.request_id == "no":
            return Refused(request_id="no", code=RefusalCode.OVERLOADED, retry_after_seconds=2.0)
        return Ticket(generate, 1.0, 0.0, math.inf, 0, 1)

    mailbox.greet(ready, admit)
    worker = connect()
    assert read(worker) == ready

    for request_id in ("no", "yes", "no"):
        worker.send_bytes(encode(msgspec.structs.replace(REQUEST, request_id=request_id)))

    assert [read(worker).code for _ in range(2)] == [RefusalCode.OVERLOADED] * 2
    ((_, ticket),) = letters(mailbox, 1)
    assert isinstance(ticket, Ticket)
    assert ticket.generate.request_id == "yes"


def test_a_request_that_cannot_be_judged_is_refused_and_costs_nobody_a_connection(
    mailbox, connect, ready
):
    """Its sender would send it again on the next one, for ever."""

    def admit(generate):
        if generate.request_id == "poison":
            raise ZeroDivisionError
        return Ticket(generate, 1.0, 0.0, math.inf, 0, 1)

    mailbox.greet(ready, admit)
    worker = connect()
    assert read(worker) == ready

    for request_id in ("poison", "sound"):
        worker.send_bytes(encode(msgspec.structs.replace(REQUEST, request_id=request_id)))

    assert read(worker) == Refused(request_id="poison", code=RefusalCode.INTERNAL)
    ((_, ticket),) = letters(mailbox, 1)
    assert ticket.generate.request_id == "sound"


def test_what_is_sent_through_is_written_when_that_returns(mailbox, connect):
    """The next thing the process does may be its last."""
    worker = connect()
    worker.send_bytes(cancel("hello"))
    ((owner, _),) = letters(mailbox, 1)

    mailbox.send_through(owner, Isolated(request_id="r"))

    assert worker.poll(0)
    assert read(worker) == Isolated(request_id="r")


def test_who_does_not_read_is_not_waited_for_when_sent_through(mailbox, connect, monkeypatch):
    monkeypatch.setattr(mailbox_module, "_WRITE_SECONDS", 0.05)
    worker = connect()
    worker.send_bytes(cancel("hello"))
    ((owner, _),) = letters(mailbox, 1)
    for _ in range(40):
        mailbox.send(owner, Outputs(deltas=[Delta(request_id="r", token_ids=[1] * 10_000)]))

    mailbox.send_through(owner, Isolated(request_id="r"))
    mailbox.send_through(Owner(99), Isolated(request_id="r"))

    for _ in range(40):
        read(worker)
    assert read(worker) == Isolated(request_id="r")


def test_closing_delivers_what_was_posted(mailbox, connect, tmp_path):
    worker = connect()
    worker.send_bytes(cancel("r"))
    ((owner, _),) = letters(mailbox, 1)
    for number in range(100):
        mailbox.send(owner, Stats(num_steps=number))

    mailbox.close()

    assert [read(worker).num_steps for _ in range(100)] == list(range(100))
    with pytest.raises((EOFError, ConnectionError)):
        worker.recv_bytes()
    with pytest.raises(OSError, match=r"refused|No such"):
        Client(str(tmp_path / "socket"), "AF_UNIX", authkey=KEY)


def test_a_socket_that_was_removed_is_made_anew_and_nobody_is_cut_off(mailbox, connect, tmp_path):
    before = connect()
    before.send_bytes(cancel("hello"))
    letters(mailbox, 1)
    (tmp_path / "socket").unlink()
    with pytest.raises(FileNotFoundError):
        connect()

    mailbox.keep_address()
    mailbox.keep_address()

    connect().send_bytes(cancel("new"))
    before.send_bytes(cancel("old"))
    assert {message.request_id for _, message in letters(mailbox, 2)} == {"new", "old"}


def test_a_folder_that_was_removed_costs_the_engine_nothing(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with closing(Mailbox(str(folder / "socket"), KEY)) as mailbox:
        (folder / "socket").unlink()
        folder.rmdir()
        mailbox.keep_address()
        folder.mkdir()

        mailbox.keep_address()

        with closing(Client(str(folder / "socket"), "AF_UNIX", authkey=KEY)) as worker:
            worker.send_bytes(cancel("r"))
            assert letters(mailbox, 1)[0][1] == Cancel(request_id="r")


def test_connections_that_end_leave_no_threads(mailbox, connect):
    for _ in range(20):
        worker = connect()
        worker.send_bytes(cancel("r"))
        letters(mailbox, 1)
        worker.close()
        letters(mailbox, 1)
    threads = [t for t in threading.enumerate() if t.name in ("reader", "writer")]
    for thread in threads:
        thread.join(PATIENCE_SECONDS)

    assert not any(thread.is_alive() for thread in threads)
