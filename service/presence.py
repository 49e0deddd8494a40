"""Ends work whose client left or whose time ran out, for streams and for plain replies alike.

The framework does neither: a handler that waits goes on for a closed connection.
"""

from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup
from litestar.types import Receive

from service.errors import BodyTimeout, DeadlineExceeded, EngineUnavailable


class ClientGone(Exception):
    """The connection closed before the reply was complete; nobody reads an answer."""


class Presence:
    """Owns the tasks that watch connections; one per application, open as long as it."""

    def __init__(self) -> None:
        self._task_group: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._task_group = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task_group = self._opened()
        self._task_group = None
        task_group.cancel_scope.cancel()
        await task_group.__aexit__(error_type, error, traceback)

    def attend(self, receive: Receive, deadline: float) -> "Attendance":
        """Make a context whose body ends early at the deadline, on the event loop's clock."""
        return Attendance(self._opened(), receive, deadline)

    def _opened(self) -> TaskGroup:
        if self._task_group is None:
            raise RuntimeError("Presence is used outside its lifespan.")
        return self._task_group


class Attendance:
    """The body of this context is cancelled at the deadline and, once watched, with the client.

    Leaving it then raises ClientGone, BodyTimeout (not yet watched) or DeadlineExceeded; when the
    server itself cancels it, EngineUnavailable. Closing is synchronous, so that it also completes
    while the surrounding task is being cancelled.
    """

    def __init__(self, task_group: TaskGroup, receive: Receive, deadline: float) -> None:
        self._task_group = task_group
        self._receive = receive
        self._work = anyio.CancelScope(deadline=deadline)
        self._watching: anyio.CancelScope | None = None
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
        if self._watching is not None:
            self._watching.cancel()
        self._work.__exit__(error_type, error, traceback)
        if self._work.cancelled_caught:
            if self._client_gone:
                raise ClientGone
            raise BodyTimeout if self._watching is None else DeadlineExceeded
        if isinstance(error, anyio.get_cancelled_exc_class()):
            # The server cancels what outlasts its drain time; the client is told while it can be.
            raise EngineUnavailable("engine_stopping", "The service is stopping.") from error

    def watch(self) -> None:
        """Watch the connection from here on; the request's body has been read."""
        self._watching = anyio.CancelScope()
        self._task_group.start_soon(self._wait_for_disconnect, self._watching)

    def give_up(self) -> None:
        """End the body as if the client had left: it takes nothing any more."""
        self._client_gone = True
        self._work.cancel()

    async def _wait_for_disconnect(self, watching: anyio.CancelScope) -> None:
        with watching:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            self.give_up()
