"""`loupe serve`: starts the inference process and the web workers, watches, restarts, stops.

One thread that waits on pipes and process ends: no event loop, no torch, no HTTP. It owns the
listening socket and the runtime folder, so that both outlive any child. A hang-up signal has every
worker replaced, one after another.
"""

import contextlib
import math
import signal
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO, assert_never

import structlog
from setproctitle import setproctitle

from inference.control import Heartbeat, Progress, ReplaceMe, Started, StartFailed, Stop
from inference.log import configure_logging
from service.config import Settings
from service.metrics.process_metrics import ProcessMetrics
from service.processes.child import Child
from service.processes.foothold import (
    ENGINE_SOCKET,
    CannotServe,
    allow_many_connections,
    has_terminal,
    listening_socket,
    received_signals,
    runtime_folder,
)
from service.processes.launcher import INFERENCE, Entries, Launcher, log_config
from service.processes.restart_budget import RestartBudget
from service.processes.succession import Succession
from service.processes.watch import Watch
from service.start_line import StartLine
from service.terminal import StatusLine, is_terminal
from service.tracing.settings import tracing_is_installed

_TICK_SECONDS = 1.0
_LAUNCH_RETRY_SECONDS = 1.0
_CUT_SECONDS = 2.0  # after the drain time, for a child to end on its own
_ENGINE_STOP_SECONDS = 5.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = structlog.get_logger(__name__)


def serve(settings: Settings, entries: Entries) -> int:
    """Run the service until it is stopped.

    Returns:
        The exit status: 0 after an ordered stop, 1 when the service cannot start or gives up,
        128 + the signal when a second signal cut the stop short.
    """
    setproctitle("loupe supervisor")
    configure_logging(log_config(settings, "supervisor"))
    allow_many_connections()
    try:
        _require_extras(settings)
        with (
            received_signals() as signals,
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
        self._watch = Watch(signals)
        self._listener = listener
        self._names = [INFERENCE, *(f"worker {index}" for index in range(settings.num_workers))]
        self._children: dict[str, Child] = {}
        self._succession = Succession()
        self._metrics = ProcessMetrics(self._names)
        address = str(folder / ENGINE_SOCKET)
        self._launcher = Launcher(settings, entries, listener, address, self._metrics)
        self._had_terminal = has_terminal()
        self._is_stopping = False
        self._starts_at = dict.fromkeys(self._names, 0.0)
        self._budgets = {
            name: RestartBudget(settings.restart_budget, settings.restart_window_seconds)
            for name in self._names
        }
        self._announced = False
        self._start_line = StartLine(
            StatusLine(sys.stderr, sys.stdout), yields_to_bars=is_terminal(sys.stderr)
        )

    def run(self) -> int:
        try:
            self._serve()
            return self._stop(self._settings.drain_seconds, self._settings.shutdown_delay_seconds)
        except CannotServe:
            self._stop(0.0)
            raise
        finally:
            self._start_line.end()
            self._cut(self._everyone())

    def _serve(self) -> None:
        """Keep the service up until a signal asks for its end."""
        while True:
            self._start_what_is_due()
            self._start_a_successor()
            match self._watch.next_signal(self._everyone(), self._until_next_start()):
                case None:
                    self._look_after()
                case signal.SIGHUP if not self._has_hung_up():
                    self._replace_all_workers()
                case _:
                    return

    def _look_after(self) -> None:
        self._metrics.note_memory()
        self._start_line.draw()
        dead = [child for child in self._everyone() if child.exit_code is not None]
        self._read_messages()  # the last words of the dead among them
        self._end_the_overdue()
        for child in dead:
            self._bury(child)

    def _everyone(self) -> list[Child]:
        return [*self._children.values(), *self._succession.members()]

    def _has_hung_up(self) -> bool:
        """Tell a terminal that was closed from somebody who asks for new workers."""
        return self._had_terminal and not has_terminal()

    def _start_what_is_due(self) -> None:
        now = time.monotonic()
        for name in [name for name, due in self._starts_at.items() if due <= now]:
            child = self._launch(name)
            if child is None:
                self._starts_at[name] = now + _LAUNCH_RETRY_SECONDS
                continue
            del self._starts_at[name]
            self._children[name] = child
            log.info("process_started", child=name, pid=child.pid)

    def _launch(self, name: str) -> Child | None:
        """Start a child; None where the machine has no process, memory or descriptor for it now.

        Raises:
            CannotServe: nothing was served so far, so that it is not a passing want.
        """
        try:
            return self._launcher.launch(name)
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or "out of memory"
            if not self._announced:
                raise CannotServe(f"cannot start the process `{name}`: {reason}") from error
            log.error("process_not_started", child=name, reason=reason)  # noqa: TRY400 - the reason is whole
            return None

    def _replace_all_workers(self) -> None:
        log.info("workers_replacing")
        for name in self._children:
            if name != INFERENCE:
                self._succession.want(name)

    def _start_a_successor(self) -> None:
        name = self._succession.due()
        if name is None or name not in self._children:
            return
        successor = self._launch(name)
        if successor is not None:  # or those in place go on
            self._succession.begin(successor)
            log.info("successor_started", child=name, pid=successor.pid)

    def _until_next_start(self, leaving: Iterable[Child] = ()) -> float:
        times = [*self._starts_at.values(), *(child.leaves_by for child in leaving)]
        now = time.monotonic()
        return max(0.0, min([_TICK_SECONDS, *(due - now for due in times)]))

    def _read_messages(self) -> None:
        for child in self._everyone():
            for message in child.messages():
                match message:
                    case Heartbeat():
                        pass
                    case Progress(stage=stage):
                        self._start_line.enter(stage)
                        log.info("process_progress", child=child.name, stage=stage)
                    case Started():
                        child.started = True
                        log.info("process_ready", child=child.name, pid=child.pid)
                        self._succeed(child)
                        self._announce()
                    case ReplaceMe():
                        self._succession.want(child.name)
                    case StartFailed(message=reason):
                        raise CannotServe(reason)
                    case _:
                        assert_never(message)

    def _succeed(self, successor: Child) -> None:
        """Put a successor that is ready in its place, and let the one before it finish."""
        if successor is not self._succession.successor or self._is_stopping:
            return
        before = self._children.get(successor.name)
        self._children[successor.name] = successor
        self._succession.succeeded(before)
        if before is not None:
            drain_seconds = self._settings.drain_seconds
            stop = Stop(drain_seconds=drain_seconds, is_replaced=True)
            before.stop(stop, drain_seconds + _CUT_SECONDS)

    def _announce(self) -> None:
        """Say once, in a line a person can read, that the service is ready."""
        if len(self._children) < len(self._names) or self._is_stopping:
            return
        if self._announced or not all(child.started for child in self._children.values()):
            return
        self._announced = True
        self._start_line.end()
        host, port = self._listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        log.info("ready", url=url)
        _tell(f"Loupe is ready: {url}  (API documentation: {url}/docs)", sys.stdout)

    def _end_the_overdue(self) -> None:
        """End who is silent for too long, and who does not leave in time."""
        now = time.monotonic()
        for child in self._everyone():
            allowed = (
                self._settings.heartbeat_timeout_seconds
                if child.started
                else self._settings.start_timeout_seconds
            )
            if child.exit_code is not None:
                continue
            if now >= child.leaves_by:
                log.warning("process_killed", child=child.name, pid=child.pid)
                child.kill()
            elif now - child.silent_since > allowed:
                log.error("process_stuck", child=child.name, pid=child.pid, seconds=allowed)
                child.kill()

    def _bury(self, child: Child) -> None:
        """Take an ended process out, and see that its place is filled as long as it must be."""
        child.reap()
        self._launcher.take_back(child)
        is_expected = child.leaves_by < math.inf
        tell = log.info if is_expected else log.warning
        tell("process_ended", child=child.name, pid=child.pid, status=child.exit_code)
        if child in self._succession.members():
            if self._succession.lose(child):
                log.error("successor_lost", child=child.name)
            return
        del self._children[child.name]
        successor = self._succession.take(child.name)
        if successor is not None:
            self._children[child.name] = successor
        elif not is_expected and (child.name == INFERENCE or not self._is_stopping):
            # While workers still finish their requests, an engine is needed for them.
            pause_seconds = self._pause_before_restart(child)
            self._metrics.restarts(child.name)
            self._starts_at[child.name] = time.monotonic() + pause_seconds

    def _pause_before_restart(self, child: Child) -> float:
        # A web worker that had served is cheap to replace, however often one is lost.
        if child.started and child.name != INFERENCE:
            return 0.0
        pause = self._budgets[child.name].spend(time.monotonic())
        if pause is None:
            raise CannotServe(
                f"the process `{child.name}` ended {self._settings.restart_budget + 1} times "
                f"within {self._settings.restart_window_seconds:g} s; giving up"
            )
        return pause

    def _stop(self, drain_seconds: float, delay_seconds: float = 0.0) -> int:
        """Let the workers finish, then end the engine; a second signal ends all at once."""
        self._start_line.end()
        log.info("stopping", drain_seconds=drain_seconds, delay_seconds=delay_seconds)
        self._is_stopping = True
        # An engine that was lost before is still to come: the workers' requests wait for it.
        self._starts_at = {n: due for n, due in self._starts_at.items() if n == INFERENCE}
        self._listener.close()  # the workers close theirs, and new clients are turned away
        workers = [child for child in self._everyone() if child.name != INFERENCE]
        stop = Stop(drain_seconds=drain_seconds, delay_seconds=delay_seconds)
        cut_by = self._see_off(workers, stop, drain_seconds + delay_seconds + _CUT_SECONDS)
        self._starts_at.clear()  # an engine that was to start for them
        if cut_by is None:
            inference = [child for child in self._everyone() if child.name == INFERENCE]
            # An engine that is still loading has nothing to lose and does not listen.
            patience = _ENGINE_STOP_SECONDS * any(child.started for child in inference)
            cut_by = self._see_off(inference, Stop(drain_seconds=0.0), patience)
        if cut_by is not None:
            log.warning("stop_cut_short", signal=cut_by.name)
            return 128 + cut_by
        log.info("stopped")
        return 0

    def _see_off(
        self, leaving: list[Child], stop: Stop, patience_seconds: float
    ) -> signal.Signals | None:
        """Have them leave, meanwhile look after the others; say which signal cut it short."""
        for child in leaving:
            child.stop(stop, patience_seconds)
        while any(child in leaving for child in self._everyone()):
            self._start_what_is_due()
            until = self._until_next_start(leaving)
            signal_received = self._watch.next_signal(self._everyone(), until)
            if signal_received in _STOP_SIGNALS:
                return signal_received
            self._look_after()
        return None

    def _cut(self, children: Iterable[Child]) -> None:
        for child in children:
            if child.exit_code is None:
                log.warning("process_killed", child=child.name, pid=child.pid)
                child.kill()
            child.reap()


def _require_extras(settings: Settings) -> None:
    """Refuse what was asked for and is not installed.

    Raises:
        CannotServe: it would be missed only once it is needed.
    """
    if settings.tracing.otel_endpoint and not tracing_is_installed():
        raise CannotServe("otel_endpoint needs the extra `otel`: pip install 'loupe[otel]'")


def _tell(line: str, terminal: TextIO) -> None:
    """Write one line for the operator; a closed pipe must not end the service."""
    with contextlib.suppress(OSError):
        terminal.write(line + "\n")
        terminal.flush()
