"""The inference process: its entry, its loop, and its end of the supervisor's control pipe.

Light to import (the supervisor names the entry, and the web side never loads torch); the engine
comes in only inside the child.
"""

import contextlib
import os
import select
import threading
import time
import uuid
from collections.abc import Generator
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import structlog

from inference.config import EngineConfig
from inference.control import ChildMessage, Heartbeat, Progress, Started, StartFailed
from inference.frames import FrameError, decode_stop, encode
from inference.heap import freeze_objects
from inference.ledger import Place, Slab, private_slab
from inference.log import LogConfig, configure_logging, request_names
from inference.metrics import EngineMetrics
from inference.protocol import PROTOCOL_VERSION, Cancel, Delta, Generate, Isolated, Outputs, Ready

if TYPE_CHECKING:
    from inference.engine import Engine
    from inference.mailbox import Letter, Mailbox
    from inference.model_check import ModelCheck
    from inference.sequence import Owner

HEARTBEAT_SECONDS = 1.0
# A grammar compiles on another thread; look for it this often while nothing else is to do.
_POLL_SECONDS = 0.005

_log = structlog.get_logger()


def run_inference(
    control: Connection,
    *,
    config: EngineConfig,
    address: str,
    authkey: bytes,
    logging: LogConfig,
    place: Place | None = None,
) -> None:
    """Serve web workers at `address` until told to stop; the spawned child's entry.

    place: in the ledger, for what is counted here and what callers have used of their quotas; None
        counts for nobody.

    Returns when stopped or when the start failed for a reason that a restart would not mend; any
    other fault ends the process with a traceback.
    """
    configure_logging(logging)
    supervisor = _Supervisor(control)
    with supervisor.beating():
        # Heavy imports belong to the start that the supervisor can watch.
        from inference.build import build_engine
        from inference.checkpoint_json import CheckpointError
        from inference.device import DeviceError
        from inference.mailbox import Mailbox
        from inference.memory import ModelTooLarge

        mailbox = Mailbox(address, authkey)
        try:
            engine = build_engine(config, lambda stage: supervisor.tell(Progress(stage=stage)))
        except (CheckpointError, DeviceError, ModelTooLarge) as error:
            supervisor.tell(StartFailed(message=str(error)))
            return
    slab = Slab(place) if place else private_slab()
    metrics = EngineMetrics(slab)
    engine.gate.keep_quotas_in(slab)
    mailbox.greet(
        Ready(
            protocol_version=PROTOCOL_VERSION,
            engine_id=uuid.uuid4().hex,
            model=engine.model,
            limits=engine.limits,
        ),
        engine.gate.admit,
    )
    freeze_objects()
    supervisor.tell(Started())
    _serve(engine, mailbox, supervisor, metrics)
    mailbox.close()
    engine.close()


def check_model(config: EngineConfig) -> "ModelCheck":
    """Judge a configuration without loading weights; imports torch where a GPU must be asked."""
    from inference import model_check

    return model_check.check_model(config, lambda stage: None)


def _serve(
    engine: "Engine", mailbox: "Mailbox", supervisor: "_Supervisor", metrics: EngineMetrics
) -> None:
    _count(engine, metrics)
    next_beat = 0.0
    while not supervisor.stop_is_due(has_work=engine.has_work):
        now = time.monotonic()
        if now >= next_beat:
            supervisor.beat()
            mailbox.keep_address()
            stats = engine.stats()
            mailbox.broadcast(stats)
            metrics.note(stats, engine.scheduler.blocks.num_usable)
            next_beat = now + HEARTBEAT_SECONDS
        if supervisor.is_stopping:
            engine.gate.drain()
        for letter in mailbox.receive(_idle_seconds(engine)):
            _read(letter, engine)
        if engine.has_work:
            _deliver(engine, mailbox, metrics)


def _idle_seconds(engine: "Engine") -> float:
    if engine.scheduler.has_work or engine.has_outputs:
        return 0.0
    return _POLL_SECONDS if engine.has_work else HEARTBEAT_SECONDS / 4


def _read(letter: "Letter", engine: "Engine") -> None:
    from inference.mailbox import Gone

    owner, message = letter
    match message:
        case Cancel():
            engine.cancel(owner, message.request_id)
        case Gone():
            engine.cancel_all(owner)
        case Generate():  # sent before the greeting, so not yet through the gate
            _tell_of(message)
            engine.add(owner, message)
        case _:
            _tell_of(message.generate)
            engine.take(owner, message)


def _tell_of(generate: Generate) -> None:
    _log.debug("request_taken", **request_names(generate.request_id, generate.traceparent))


def _count(engine: "Engine", metrics: EngineMetrics) -> None:
    """Count the last step, before anybody hears of it."""
    scheduler, step = engine.scheduler, engine.last_step
    metrics.preemptions.follow(scheduler.num_preemptions)
    block_size = engine.limits.block_size
    metrics.prefix_cache_queries.follow(scheduler.prefix_cache_queries * block_size)
    metrics.prefix_cache_hits.follow(scheduler.prefix_cache_hits * block_size)
    metrics.embedding_cache_queries.follow(scheduler.embedding_cache_queries)
    metrics.embedding_cache_hits.follow(scheduler.embedding_cache_hits)
    if step is not None:
        num_sequences = len(step.decodes) + len(step.prefills)
        metrics.note_step(num_sequences, len(step.decodes) + step.num_prefill_tokens)


def _deliver(engine: "Engine", mailbox: "Mailbox", metrics: EngineMetrics) -> None:
    """Run a step; what it brought goes out as one frame per worker."""
    deltas: dict[Owner, list[Delta]] = {}
    outputs = engine.step()
    _count(engine, metrics)
    for owner, message in outputs:
        if isinstance(message, Delta):
            deltas.setdefault(owner, []).append(message)
        elif isinstance(message, Isolated):
            mailbox.send_through(owner, message)
        else:
            mailbox.send(owner, message)
    for owner, batch in deltas.items():
        mailbox.send(owner, Outputs(deltas=batch))


def has_room(control: Connection) -> bool:
    """Tell whether a short message can be written now.

    A supervisor that is stopped in its tracks reads nothing, and must not stop its children too.
    """
    poll = select.poll()
    poll.register(control.fileno(), select.POLLOUT)
    return bool(poll.poll(0))


class _Supervisor:
    """The control pipe: reports go up, an order to stop comes down, its end ends this process."""

    def __init__(self, control: Connection) -> None:
        self._control = control
        self._lock = threading.Lock()
        self._deadline: float | None = None
        threading.Thread(target=self._listen, name="control", daemon=True).start()

    @property
    def is_stopping(self) -> bool:
        """The order to stop has come."""
        return self._deadline is not None

    def stop_is_due(self, *, has_work: bool) -> bool:
        """Time to leave: told to stop, and either done or out of time."""
        return self._deadline is not None and (not has_work or time.monotonic() >= self._deadline)

    def beat(self) -> None:
        """Say that the main loop turned."""
        if has_room(self._control):
            self.tell(Heartbeat())

    def tell(self, message: ChildMessage) -> None:
        """Report; a supervisor that is gone is noticed by the listening thread."""
        with self._lock, contextlib.suppress(OSError):
            self._control.send_bytes(encode(message))

    @contextlib.contextmanager
    def beating(self) -> Generator[None]:
        """Beat from a thread while the main one is busy with the start, which has its own limit."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(HEARTBEAT_SECONDS):
                self.beat()

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _listen(self) -> None:
        try:
            order = decode_stop(self._control.recv_bytes())
            self._deadline = time.monotonic() + order.drain_seconds
            self._control.recv_bytes()
        except (EOFError, OSError, FrameError):
            os._exit(1)  # no supervisor, no service: nothing here may hold the GPU
