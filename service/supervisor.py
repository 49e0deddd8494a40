"""`loupe serve`: starts the inference process and the web workers, watches, restarts, stops.

One thread that waits on pipes and process ends: no event loop, no torch, no HTTP. It owns the
listening socket and the runtime folder, so that both outlive any child.
"""

import contextlib
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple, TextIO, TypedDict, Unpack, assert_never

import structlog
from setproctitle import setproctitle

from inference.config import EngineConfig
from inference.log import LogConfig, configure_logging
from inference.protocol import Heartbeat, Progress, Started, StartFailed
from service.child import Child
from service.config import Settings
from service.foothold import (
    ENGINE_SOCKET,
    CannotServe,
    allow_many_connections,
    listening_socket,
    runtime_folder,
    stop_signals,
)
from service.restart_budget import RestartBudget
from service.threads import plan_threads, variables_set

_TICK_SECONDS = 1.0
_CUT_SECONDS = 2.0  # after the drain time, for a child to end on its own
_ENGINE_STOP_SECONDS = 5.0
_INFERENCE = "inference"

log = structlog.get_logger(__name__)


class WorkerArguments(TypedDict):
    """What a web worker is given beside its control pipe."""

    settings: Settings
    socket: socket.socket
    address: str
    authkey: bytes


class InferenceArguments(TypedDict):
    """What the inference process is given beside its control pipe."""

    config: EngineConfig
    address: str
    authkey: bytes
    logging: LogConfig


class Entries(NamedTuple):
    """What the children run."""

    worker: Callable[..., None]
    inference: Callable[..., None]


def _run_worker(control: Connection, **arguments: Unpack[WorkerArguments]) -> None:
    from service.worker import run_worker

    run_worker(control=control, **arguments)


def _run_inference(control: Connection, **arguments: Unpack[InferenceArguments]) -> None:
    from inference.main import run_inference

    run_inference(control=control, **arguments)


ENTRIES = Entries(worker=_run_worker, inference=_run_inference)


def serve(settings: Settings, entries: Entries) -> int:
    """Run the service until it is stopped.

    Returns:
        The exit status: 0 after an ordered stop, 1 when the service cannot start or gives up,
        128 + the signal when a second signal cut the stop short.
    """
    setproctitle("loupe supervisor")
    configure_logging(_log_config(settings, "supervisor"))
    allow_many_connections()
    try:
        with (
            stop_signals() as signals,
            listening_socket(settings.host, settings.port) as listener,
            runtime_folder() as folder,
        ):
            return _Supervisor(settings, entries, signals, listener, folder).run()
    except CannotServe as error:
        _tell(f"loupe: {error}", sys.stderr)
        return 1


class _Supervisor:
    """The children, by name, and what is to happen to them next."""

    def __init__(
        self,
        settings: Settings,
        entries: Entries,
        signals: socket.socket,
        listener: socket.socket,
        folder: Path,
    ) -> None:
        self._settings = settings
        self._entries = entries
        self._signals = signals
        self._listener = listener
        self._address = str(folder / ENGINE_SOCKET)
        self._authkey = secrets.token_bytes(32)
        self._names = [_INFERENCE, *(f"worker {index}" for index in range(settings.num_workers))]
        self._children: dict[str, Child] = {}
        self._starts_at = dict.fromkeys(self._names, 0.0)
        self._budgets = {
            name: RestartBudget(settings.restart_budget, settings.restart_window_seconds)
            for name in self._names
        }
        self._announced = False

    def run(self) -> int:
        try:
            while True:
                self._start_what_is_due()
                if self._next_signal(self._until_next_start()) is not None:
                    return self._stop(self._settings.drain_seconds)
                dead = [child for child in self._children.values() if child.exit_code is not None]
                self._read_messages()  # the last words of the dead among them
                self._end_the_silent()
                self._replace(dead)
        except CannotServe:
            self._stop(0.0)
            raise
        finally:
            self._cut(self._children.values())

    def _start_what_is_due(self) -> None:
        now = time.monotonic()
        for name in [name for name, due in self._starts_at.items() if due <= now]:
            del self._starts_at[name]
            self._children[name] = self._start(name)
            log.info("process_started", child=name, pid=self._children[name].pid)

    def _start(self, name: str) -> Child:
        log_config = _log_config(self._settings, name)
        if name != _INFERENCE:
            arguments = WorkerArguments(
                settings=self._settings,
                socket=self._listener,
                address=self._address,
                authkey=self._authkey,
            )
            return Child(log_config, self._entries.worker, arguments)
        # A killed engine leaves its socket's name behind.
        Path(self._address).unlink(missing_ok=True)
        plan = plan_threads(self._settings, os.environ)
        log.info("engine_threads", plan=plan.reason)
        with variables_set(plan.variables):
            arguments = InferenceArguments(
                config=self._settings.engine,
                address=self._address,
                authkey=self._authkey,
                logging=log_config,
            )
            return Child(log_config, self._entries.inference, arguments)

    def _until_next_start(self) -> float:
        pauses = [due - time.monotonic() for due in self._starts_at.values()]
        return max(0.0, min([_TICK_SECONDS, *pauses]))

    def _next_signal(self, timeout: float) -> signal.Signals | None:
        """Wait for anything to happen; say which signal came, if one did."""
        watched: list[socket.socket | Connection | int] = [self._signals]
        for child in self._children.values():
            watched.append(child.sentinel)
            if not child.control.closed:
                watched.append(child.control)
        if self._signals not in wait(watched, timeout):
            return None
        return signal.Signals(self._signals.recv(1)[0])

    def _read_messages(self) -> None:
        for child in self._children.values():
            for message in child.messages():
                match message:
                    case Heartbeat():
                        pass
                    case Progress(stage=stage):
                        log.info("process_progress", child=child.name, stage=stage)
                    case Started():
                        child.started = True
                        log.info("process_ready", child=child.name, pid=child.pid)
                        self._announce()
                    case StartFailed(message=reason):
                        raise CannotServe(reason)
                    case _:
                        assert_never(message)

    def _announce(self) -> None:
        """Say once, in a line a person can read, that the service is ready."""
        if len(self._children) < len(self._names):
            return
        if self._announced or not all(child.started for child in self._children.values()):
            return
        self._announced = True
        host, port = self._listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        log.info("ready", url=url)
        _tell(f"Loupe is ready: {url}  (API documentation: {url}/docs)", sys.stdout)

    def _end_the_silent(self) -> None:
        now = time.monotonic()
        for child in self._children.values():
            allowed = (
                self._settings.heartbeat_timeout_seconds
                if child.started
                else self._settings.start_timeout_seconds
            )
            if now - child.silent_since > allowed and child.exit_code is None:
                log.error("process_stuck", child=child.name, pid=child.pid, seconds=allowed)
                child.kill()

    def _replace(self, dead: list[Child]) -> None:
        for child in dead:
            del self._children[child.name]
            child.reap()
            log.warning("process_ended", child=child.name, pid=child.pid, status=child.exit_code)
            self._starts_at[child.name] = time.monotonic() + self._pause_before_restart(child)

    def _pause_before_restart(self, child: Child) -> float:
        # A web worker that had served is cheap to replace, however often one is lost.
        if child.started and child.name != _INFERENCE:
            return 0.0
        pause = self._budgets[child.name].spend(time.monotonic())
        if pause is None:
            raise CannotServe(
                f"the process `{child.name}` ended {self._settings.restart_budget + 1} times "
                f"within {self._settings.restart_window_seconds:g} s; giving up"
            )
        return pause

    def _stop(self, drain_seconds: float) -> int:
        """Let the workers finish, then end the engine; a second signal ends all at once."""
        log.info("stopping", drain_seconds=drain_seconds)
        self._listener.close()  # the workers close theirs, and new clients are turned away
        workers = [child for child in self._children.values() if child.name != _INFERENCE]
        inference = [child for child in self._children.values() if child.name == _INFERENCE]
        # An engine that is still loading has nothing to lose and does not listen.
        engine_patience = _ENGINE_STOP_SECONDS * any(child.started for child in inference)
        for group, drain, patience in (
            (workers, drain_seconds, drain_seconds + _CUT_SECONDS),
            (inference, 0.0, engine_patience),
        ):
            for child in group:
                child.stop(drain)
            cut_by = self._wait_until_gone(group, time.monotonic() + patience)
            if cut_by is not None:
                log.warning("stop_cut_short", signal=cut_by.name)
                return 128 + cut_by
            self._cut(group)
        log.info("stopped")
        return 0

    def _wait_until_gone(self, group: list[Child], deadline: float) -> signal.Signals | None:
        while any(child.exit_code is None for child in group):
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            signal_received = self._next_signal(min(left, _TICK_SECONDS))
            if signal_received is not None:
                return signal_received
            self._drop_messages()
        return None

    def _drop_messages(self) -> None:
        """Keep the pipes empty; nothing that a child says now matters."""
        for child in list(self._children.values()):
            for _ in child.messages():
                pass
            if child.exit_code is not None:
                del self._children[child.name]
                child.reap()

    def _cut(self, children: Iterable[Child]) -> None:
        for child in list(children):
            if child.exit_code is None:
                log.warning("process_killed", child=child.name, pid=child.pid)
                child.kill()
            child.reap()
            self._children.pop(child.name, None)


def _log_config(settings: Settings, process: str) -> LogConfig:
    return LogConfig(level=settings.log_level, format=settings.log_format, process=process)


def _tell(line: str, terminal: TextIO) -> None:
    """Write one line for the operator; a closed pipe must not end the service."""
    with contextlib.suppress(OSError):
        terminal.write(line + "\n")
        terminal.flush()
