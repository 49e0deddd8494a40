"""uvicorn's server with an end of its own: nothing that was taken is lost, and nobody is kept.

It knows connections and time, nothing of requests.
"""

import math
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import anyio
import uvicorn

from inference.control import Stop

_POLL_SECONDS = 0.05
# How long a connection may be quiet before it is closed without a word. At the service's end
# nobody can be asked again, so it is only for what is under way.
_QUIET_SECONDS = 5.0
_QUIET_SECONDS_AT_THE_END = 0.2
_LAST_WORDS_SECONDS = 1.0


class WebServer(uvicorn.Server):
    """Serves until it is told to stop; hands off the signals.

    serving: set once connections are accepted. num_answered: requests so far.
    """

    def __init__(self, config: uvicorn.Config, stopping: Callable[[], object]) -> None:
        """stopping: called on the event loop when the service is to end, before anything else."""
        super().__init__(config)
        self.serving = anyio.Event()
        self._stopping = stopping
        self._stop = Stop(drain_seconds=math.inf)
        self._ends_at = math.inf

    @property
    def num_answered(self) -> int:
        """Count the requests that have their answer."""
        return self.server_state.total_requests

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets)
        self.serving.set()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave the signals to the worker."""
        yield

    def leave(self, stop: Stop) -> None:
        """Stop accepting and finish what runs; may be called from any thread, also again."""
        self._stop = stop
        ends_at = time.monotonic() + stop.delay_seconds + stop.drain_seconds
        self._ends_at = min(self._ends_at, ends_at)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the running requests finish, cut those that do not, and end the application."""
        state = self.server_state
        # Nobody ticks any more, so this list stays.
        state.default_headers = [*state.default_headers, (b"connection", b"close")]
        stop, now = self._stop, time.monotonic()
        if not stop.is_replaced:
            self._stopping()
            await _wait_while(
                lambda: time.monotonic() < min(now + stop.delay_seconds, self._ends_at)
            )
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        # Whoever sends into a connection that is just being closed gets no answer. So those that
        # are in use are closed by an answer that says so.
        quiet_seconds = _QUIET_SECONDS if stop.is_replaced else _QUIET_SECONDS_AT_THE_END
        await self._wait_for_connections(until=time.monotonic() + quiet_seconds)
        for connection in list(state.connections):
            connection.shutdown()
        await self._wait_for_connections()
        if stop.is_replaced and not self._stop.is_replaced:
            self._stopping()  # the whole service ends meanwhile: there is nowhere to come back to
        for task in list(state.tasks):
            task.cancel()
        cut_at = time.monotonic()
        await _wait_while(
            lambda: bool(state.tasks) and time.monotonic() < cut_at + _LAST_WORDS_SECONDS
        )
        await self.lifespan.shutdown()

    async def _wait_for_connections(self, until: float = math.inf) -> None:
        """Wait for all to close, and for what runs without one; no longer than the stop allows."""
        state = self.server_state
        await _wait_while(
            lambda: (
                bool(state.connections or state.tasks)
                and time.monotonic() < min(until, self._ends_at)
            )
        )


async def _wait_while(condition: Callable[[], bool]) -> None:
    while condition():  # noqa: ASYNC110 - uvicorn and a thread change it, and signal nothing
        await anyio.sleep(_POLL_SECONDS)
