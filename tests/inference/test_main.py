"""The inference process as the supervisor starts it, with the demo model, over its real wire."""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Client

import msgspec
import pytest

from inference.config import EngineConfig
from inference.control import Heartbeat, Progress, Started, StartFailed, Stop
from inference.frames import decode_child_message, decode_engine_message, encode
from inference.log import LogConfig
from inference.main import run_inference
from inference.protocol import (
    PROTOCOL_VERSION,
    Cancel,
    Delta,
    FinishReason,
    Generate,
    Isolated,
    Outputs,
    Ready,
    RefusalCode,
    Refused,
    SamplingParams,
    Stats,
)

KEY = b"a key of thirty-two bytes, or so"
PATIENCE_SECONDS = 120
CONFIG = EngineConfig(
    model=os.environ.get("LOUPE_MODEL", "demo"),
    offline=True,
    device="cpu",
    num_threads=1,
    kv_cache_bytes=32 * 1024 * 1024,
)


class Worker:
    """One web worker's connection."""

    def __init__(self, address):
        self.connection = Client(address, "AF_UNIX", authkey=KEY)
        self.deltas = []

    def say(self, message):
        self.connection.send_bytes(encode(message))

    def read(self):
        assert self.connection.poll(PATIENCE_SECONDS)
        return decode_engine_message(self.connection.recv_bytes())

    def read_until(self, is_it: Callable):
        """The first message that is it; deltas on the way are kept."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            message = self.read()
            if isinstance(message, Outputs):
                self.deltas += message.deltas
            if is_it(message):
                return message
        raise AssertionError("it never came")

    def read_until_hung_up(self):
        with contextlib.suppress(EOFError, ConnectionError):
            self.read_until(lambda message: False)

    def tokens(self, request_id):
        """All tokens of a request, once it has ended."""

        def has_ended(_):
            return any(d.finish and d.request_id == request_id for d in self.deltas)

        if not has_ended(None):
            self.read_until(has_ended)
        return [t for d in self.deltas if d.request_id == request_id for t in d.token_ids]

    def finish(self, request_id) -> Delta:
        self.tokens(request_id)
        return next(d.finish for d in self.deltas if d.request_id == request_id and d.finish)


class Inference:
    """The child and the supervisor's end of its control pipe."""

    def __init__(self, folder, config=CONFIG):
        context = multiprocessing.get_context("spawn")
        self.address = str(folder / "socket")
        self.control, theirs = context.Pipe()
        self.process = context.Process(
            target=run_inference,
            args=(theirs,),
            kwargs={
                "config": config,
                "address": self.address,
                "authkey": KEY,
                "logging": LogConfig(process="inference", level="error"),
            },
        )
        self.process.start()
        theirs.close()
        self.reports = []

    def wait_for(self, kind):
        """The next report of a kind; all reports are kept."""
        while self.control.poll(PATIENCE_SECONDS):
            self.reports.append(decode_child_message(self.control.recv_bytes()))
            if isinstance(self.reports[-1], kind):
                return self.reports[-1]
        raise AssertionError(f"no {kind.__name__} among {self.reports}")

    def exit_code(self):
        self.process.join(PATIENCE_SECONDS)
        return self.process.exitcode

    def end(self):
        self.control.close()
        self.process.join(PATIENCE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


@pytest.fixture(scope="module")
def inference(tmp_path_factory):
    """One warm process for all tests that leave it running."""
    started = Inference(tmp_path_factory.mktemp("inference"))
    started.wait_for(Started)
    yield started
    started.end()


@pytest.fixture
def connect(inference):
    workers = []

    def make():
        workers.append(Worker(inference.address))
        assert isinstance(workers[-1].read(), Ready)
        return workers[-1]

    yield make
    for worker in workers:
        worker.connection.close()


def request(request_id="r", max_tokens=8, first=10):
    return Generate(
        request_id=request_id,
        prompt_token_ids=list(range(first, first + 20)),
        sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True, repetition_guard=False),
    )


def is_idle(message):
    return isinstance(message, Stats) and not message.num_running + message.num_waiting


def test_a_start_is_reported_and_the_beat_goes_on(inference):
    assert any(isinstance(report, Progress) for report in inference.reports)

    for _ in range(2):
        inference.wait_for(Heartbeat)


def test_the_greeting_tells_the_model_and_the_limits(inference):
    worker = Worker(inference.address)
    ready = worker.read()
    worker.connection.close()

    assert isinstance(ready, Ready)
    assert ready.protocol_version == PROTOCOL_VERSION
    assert ready.model.device == "cpu"
    held = (ready.limits.num_blocks - 1) * ready.limits.block_size
    assert 0 < ready.model.max_model_len <= held


def test_workers_with_equal_request_ids_do_not_mix(connect):
    first, second = connect(), connect()
    first.say(request(first=10))
    second.say(request(first=50))
    together = first.tokens("r"), second.tokens("r")

    alone = connect()
    alone.say(request("a", first=10))
    alone.say(request("b", first=50))

    assert together == (alone.tokens("a"), alone.tokens("b"))
    assert {len(tokens) for tokens in together} == {8}


def test_a_worker_that_is_lost_takes_its_requests_with_it_and_no_others(connect):
    lost, watching = connect(), connect()
    for number in range(3):
        lost.say(request(f"{number}", max_tokens=900))
    watching.say(request(max_tokens=40))
    lost.read_until(lambda message: isinstance(message, Outputs))

    lost.connection.close()

    watching.read_until(is_idle)
    assert len(watching.tokens("r")) == 40


def test_a_cancel_ends_what_runs(connect):
    worker = connect()
    worker.say(request(max_tokens=900))
    worker.read_until(lambda message: isinstance(message, Outputs))

    worker.say(Cancel(request_id="r"))
    worker.say(Cancel(request_id="unknown"))

    assert worker.finish("r").reason is FinishReason.CANCELLED
    assert len(worker.tokens("r")) < 900


def test_a_bad_frame_costs_its_sender_alone(connect):
    bad, good = connect(), connect()
    good.say(request(max_tokens=30))

    bad.connection.send_bytes(b"garbage")

    bad.read_until_hung_up()
    assert len(good.tokens("r")) == 30


def test_what_cannot_be_served_is_refused(connect):
    worker = connect()
    worker.say(msgspec.structs.replace(request(), prompt_token_ids=[10**9]))

    refused = worker.read_until(lambda message: isinstance(message, Refused))

    assert refused == Refused(request_id="r", code=RefusalCode.INPUT_INVALID)


def test_suspects_of_two_workers_run_one_after_the_other(connect):
    first, second, other = connect(), connect(), connect()
    first.say(request("other", max_tokens=300))
    first.read_until(lambda message: isinstance(message, Outputs))
    suspects = [(first, "a"), (second, "b")]
    for worker, request_id in suspects:
        asked = request(request_id, max_tokens=30)
        worker.say(msgspec.structs.replace(asked, is_suspect=True))

    for worker, request_id in suspects:
        named = worker.read_until(lambda message: isinstance(message, Isolated))
        assert named == Isolated(request_id=request_id)
        assert not any(delta.request_id == request_id for delta in worker.deltas)
        assert len(worker.tokens(request_id)) == 30
    other.say(request("late"))
    assert len(other.tokens("late")) == 8
    assert len(first.tokens("other")) == 300


def test_a_deadline_ends_a_request_on_the_engines_own_clock(connect):
    worker = connect()
    asked = msgspec.structs.replace(request(max_tokens=900), deadline_seconds=0.2)
    worker.say(asked)

    assert worker.finish("r").reason is FinishReason.DEADLINE


def test_an_order_to_stop_lets_what_runs_finish_and_refuses_what_comes(inference, connect):
    """Last of those that share the process."""
    worker = connect()
    worker.say(request("early", max_tokens=400))
    worker.read_until(lambda message: isinstance(message, Outputs))

    inference.control.send_bytes(encode(Stop(drain_seconds=PATIENCE_SECONDS)))
    late = 0
    while not any(d.finish for d in worker.deltas):
        # The order and the requests come by different ways: ask until it is known.
        worker.say(request(f"late {late}", max_tokens=1))
        message = worker.read_until(
            lambda m: isinstance(m, Refused) or any(d.finish for d in worker.deltas)
        )
        if isinstance(message, Refused):
            assert message.code is RefusalCode.DRAINING
            break
        worker.deltas = [d for d in worker.deltas if d.request_id == "early"]
        late += 1
    else:
        raise AssertionError("nothing was refused")

    assert len(worker.tokens("early")) > 300
    assert worker.finish("early").reason is FinishReason.LENGTH
    assert inference.exit_code() == 0


def test_when_the_time_to_drain_is_over_the_process_leaves(tmp_path):
    short = Inference(tmp_path)
    try:
        short.wait_for(Started)
        worker = Worker(short.address)
        worker.say(request(max_tokens=1500))
        worker.read_until(lambda message: isinstance(message, Outputs))

        short.control.send_bytes(encode(Stop(drain_seconds=0)))

        assert short.exit_code() == 0
        worker.read_until_hung_up()
        worker.connection.close()
    finally:
        short.end()


def test_a_supervisor_that_is_gone_takes_the_process_with_it(tmp_path):
    orphan = Inference(tmp_path)
    orphan.wait_for(Progress | Heartbeat)

    orphan.control.close()

    assert orphan.exit_code() == 1
    orphan.process.close()


def test_a_model_that_is_not_there_is_a_start_that_failed(tmp_path):
    config = msgspec.structs.replace(CONFIG, model=str(tmp_path / "nothing"))
    failed = Inference(tmp_path, config)
    try:
        report = failed.wait_for(StartFailed)

        assert report.message
        assert failed.exit_code() == 0
        assert not any(isinstance(report, Started) for report in failed.reports)
    finally:
        failed.end()
