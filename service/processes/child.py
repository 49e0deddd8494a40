"""A spawned child as the supervisor sees it, and the first lines that run inside it.

It knows processes and control pipes, nothing of what a child does.
"""

import atexit
import contextlib
import ctypes
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection

import structlog
from setproctitle import setproctitle

from inference.control import ChildMessage, Stop
from inference.frames import MAX_CONTROL_FRAME_BYTES, FrameError, decode_child_message, encode
from inference.log import LogConfig, configure_logging

_PR_SET_PDEATHSIG = 1
_REAP_SECONDS = 5.0
log = structlog.get_logger(__name__)
_spawn = multiprocessing.get_context("spawn")


class Child:
    """One process with one control pipe, from its spawn to its end.

    name: `inference` or `worker 0`. started: it said that it is ready to work.
    silent_since: when it was last heard, on the monotonic clock. leaves_by: when it is to be gone.
    """

    def __init__(
        self, logging: LogConfig, entry: Callable[..., None], arguments: Mapping[str, object]
    ) -> None:
        """Spawn it: `entry(control, **arguments)`, named and logging as `logging` says."""
        self.name = logging.process
        self.started = False
        self.silent_since = time.monotonic()
        self.leaves_by = math.inf
        self.control, theirs = _spawn.Pipe()
        self._process = _spawn.Process(
            target=_enter, args=(logging, entry, dict(arguments), theirs), name=self.name
        )
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        """The process id."""
        return self._process.pid

    @property
    def sentinel(self) -> int:
        """A descriptor that turns readable when the process ends."""
        return self._process.sentinel

    @property
    def exit_code(self) -> int | None:
        """None while it lives; negative is the signal that ended it."""
        return self._process.exitcode

    def messages(self) -> Iterator[ChildMessage]:
        """Yield what has arrived; a child that breaks the protocol is killed."""
        try:
            while not self.control.closed and self.control.poll():
                message = decode_child_message(self.control.recv_bytes(MAX_CONTROL_FRAME_BYTES))
                self.silent_since = time.monotonic()
                yield message
        except (EOFError, OSError):
            self.control.close()  # its end follows, or its silence is noticed
        except FrameError:
            self.control.close()
            self.kill()

    def excuse(self, seconds: float) -> None:
        """Grant it more time: for so long nobody could hear it, and it may have stood still."""
        self.silent_since += seconds
        self.leaves_by += seconds

    def stop(self, stop: Stop, patience_seconds: float) -> None:
        """Ask it to leave, and note by when; the caller watches that it does."""
        self.leaves_by = min(self.leaves_by, time.monotonic() + patience_seconds)
        with contextlib.suppress(OSError):
            self.control.send_bytes(encode(stop))

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def reap(self) -> None:
        """Take back what the ended process held."""
        self._process.join(_REAP_SECONDS)  # the kernel may keep one that hangs in a driver
        self.control.close()


def _enter(
    logging: LogConfig,
    entry: Callable[..., None],
    arguments: Mapping[str, object],
    control: Connection,
) -> None:
    """Run inside the child, before anything else."""
    setproctitle(f"loupe {logging.process}")
    configure_logging(logging)
    # A terminal and who ends a process group send these to all; the supervisor turns them into an
    # ordered stop, in which the engine is the last to go.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _die_with_the_supervisor()
    # The interpreter's own way out takes seconds to free what the kernel frees anyway. First come,
    # last served: the libraries' functions run before.
    atexit.register(os._exit, 0)
    try:
        entry(control, **arguments)
    except (Exception, SystemExit):  # the one place that may: it ends the process
        log.exception("process_failed")
        os._exit(1)  # at once: threads that the fault left behind must not hold it up


def _die_with_the_supervisor() -> None:
    """Let the kernel end this process with its parent, even inside a native call that hangs."""
    if not sys.platform.startswith("linux"):
        return  # the end of the control pipe does it there
    supervisor = multiprocessing.parent_process()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if supervisor is not None and os.getppid() != supervisor.pid:
        os._exit(1)  # it died before the kernel was asked
