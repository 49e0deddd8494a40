"""Waits for whatever comes next: a child's word or end, a signal, or a time.

It knows the clock, too: time in which nobody watched is nobody's silence. Whoever stops a container
or a machine for a while stops the children with it, and they had no chance to be heard.
"""

import signal
import socket
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait

import structlog

from service.processes.child import Child

_NAP_SECONDS = 1.0  # busy cores may bring a look so late, and no later

log = structlog.get_logger(__name__)


class Watch:
    """The supervisor's eyes and ears."""

    def __init__(self, signals: socket.socket) -> None:
        """signals: where each comes as a byte."""
        self._signals = signals

    def next_signal(self, children: Sequence[Child], timeout: float) -> signal.Signals | None:
        """Wait for anything to happen; say which signal came, if one did."""
        watched: list[socket.socket | Connection | int] = [self._signals]
        for child in children:
            watched.append(child.sentinel)
            if not child.control.closed:
                watched.append(child.control)
        looks_by = time.monotonic() + timeout
        happened = wait(watched, timeout)
        nap_seconds = time.monotonic() - looks_by
        if nap_seconds > _NAP_SECONDS:
            log.warning("supervisor_slept", seconds=round(nap_seconds, 1))
            for child in children:
                child.excuse(nap_seconds)
        if self._signals not in happened:
            return None
        return signal.Signals(self._signals.recv(1)[0])
