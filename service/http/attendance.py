"""Ends work whose client left or whose time ran out, for streams and for plain replies alike.

The framework does neither: a handler that waits goes on for a closed connection.
"""

import asyncio
from types import TracebackType
from typing import Self

import anyio
from litestar.types import Receive

from service.errors import BodyTimeout, DeadlineExceeded, EngineUnavailable
from service.http.deadline import Deadline

# A reply that is ready before this needs nobody to watch its connection, and watching costs as
# much as the framework's whole part in a request.
_UNWATCHED_SECONDS = 0.02


class ClientGone(Exception):
    """The connection closed before the reply was complete; nobody reads an answer."""


class Attendance:
    """The body of this context is cancelled at the deadline and, once watched, with the client.

    Leaving it then raises ClientGone, BodyTimeout (not yet watched) or DeadlineExceeded; when the
    server itself cancels it, EngineUnavailable. Closing is synchronous, so that it also completes
    while the surrounding task is being cancelled.
    """

    def __init__(self, receive: Receive, deadline: Deadline) -> None:
        """Attend to a request: its `receive`, and its deadline."""
        self._receive = receive
        self._deadline = deadline
        self._work = anyio.CancelScope(deadline=deadline.ends_at)
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._client_gone = False

    def __enter__(self) -> Self:
        self._work.__enter__()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None  # a cancelled task keeps its frames, and this with them
        self._work.__exit__(error_type, error, traceback)
        if self._work.cancelled_caught:
            if self._client_gone:
                raise ClientGone
            if self._timer is None:
                raise BodyTimeout
            raise DeadlineExceeded(self._deadline.spent)
        if isinstance(error, asyncio.CancelledError):
            # The server cancels what outlasts its drain time; the client is told while it can be.
            raise EngineUnavailable("engine_stopping", "The service is stopping.") from error

    def watch(self) -> None:
        """Watch the connection from here on; the request's body has been read."""
        self._work.deadline = self._deadline.ends_at  # the body may have cut it
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_UNWATCHED_SECONDS, self._start_watcher, loop)

    def give_up(self) -> None:
        """End the body as if the client had left: it takes nothing any more."""
        self._client_gone = True
        self._work.cancel()

    def _start_watcher(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not in a task group: it ends with this context, and a group a request would cost more
        # than the watching.
        self._watcher = loop.create_task(self._wait_for_disconnect())

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.give_up()
