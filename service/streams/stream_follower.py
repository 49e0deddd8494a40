"""The response that tells a client a journal's events: those it missed, and those to come."""

import math
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import Protocol

import anyio
import msgspec
from anyio.abc import TaskGroup
from litestar.types import Receive, Scope, Send

from service.errors import InternalError, ServiceError
from service.http.attendance import ClientGone
from service.http.deadline import Deadline
from service.http.error_reply import error_envelope
from service.http.event_stream import EventStream
from service.request_log import record_of
from service.streams.stream_journal import JournalReader
from service.streams.stream_production import Production

_POLL_SECONDS = 0.025  # for what another worker appends
_TOUCH_SECONDS = 1.0
_OWNER_CHECK_SECONDS = 0.25
# Every event stream's response has them already.
_OWN_HEADERS = {b"content-type", b"cache-control", b"x-accel-buffering"}


class Producers(Protocol):
    """What a follower needs of its worker."""

    @property
    def is_stopping(self) -> bool:
        """Whether the whole service ends, so that there is nowhere to come back to."""
        ...

    def producer_of(self, path: Path) -> Production | None:
        """Find what appends to a journal, if this worker does."""
        ...

    async def adopt(self, path: Path, scope: Scope, tasks: TaskGroup) -> None:
        """Go on with a stream whose owner has died; does nothing while one lives."""
        ...


class StreamFollower:
    """An ASGI response: every event behind `after`, each with its id, until the stream ends.

    When this worker's time is over, the response ends without a last event, so that the client
    comes back; where there is nowhere to come back to, with an error. is_cut: it was so.
    """

    def __init__(
        self,
        producers: Producers,
        path: Path,
        *,
        after: int = 0,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """headers: of the stream as it was made."""
        self.is_cut = False
        self._producers = producers
        self._path = path
        self._after = after
        self._headers = {"x-stream-id": path.name} | {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in headers
            if name not in _OWN_HEADERS
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the response; then go on with what this worker has adopted meanwhile."""
        unhurried = scope.copy()
        unhurried["headers"] = []  # the request's own deadline is its production's affair
        reader = JournalReader(self._path)
        try:
            async with anyio.create_task_group() as tasks:
                response = EventStream(
                    self._events(reader, scope, tasks),
                    self._render_error,
                    deadline=Deadline(unhurried, math.inf),
                    record=record_of(scope),
                    headers=self._headers,
                )
                try:
                    await response(scope, receive, send)
                except ClientGone:
                    record_of(scope).client_gone = True
                if self.is_cut:
                    tasks.cancel_scope.cancel()
        except anyio.get_cancelled_exc_class():
            self.is_cut = True  # while nobody followed: there is nobody to be told
        finally:
            reader.close()

    async def _events(
        self, reader: JournalReader, scope: Scope, tasks: TaskGroup
    ) -> AsyncGenerator[bytes, None]:
        number = 0
        touched_at = -math.inf
        checked_at = anyio.current_time()
        while True:
            now = anyio.current_time()
            if now - touched_at >= _TOUCH_SECONDS:
                reader.touch()
                touched_at = now
            events = list(enumerate(reader.events(), start=number + 1))
            number += len(events)
            if untold := [self._tell(*event) for event in events if event[0] > self._after]:
                yield b"".join(untold)
            if reader.has_ended:
                return
            if events:
                continue
            if reader.is_gone:
                raise InternalError
            if self._producers.producer_of(self._path) is None and (
                now - checked_at >= _OWNER_CHECK_SECONDS
            ):
                checked_at = now
                await self._producers.adopt(self._path, scope, tasks)
            await self._growth()

    async def _growth(self) -> None:
        production = self._producers.producer_of(self._path)
        if production is None:
            await anyio.sleep(_POLL_SECONDS)
            return
        with anyio.move_on_after(_TOUCH_SECONDS):
            await production.growth()

    def _tell(self, number: int, event: bytes) -> bytes:
        return b"id: %s:%d\n%s\n\n" % (self._path.name.encode(), number, event)

    def _render_error(self, error: ServiceError) -> bytes:
        self.is_cut = error.code == "engine_stopping"
        if self.is_cut and not self._producers.is_stopping:
            return b""
        production = self._producers.producer_of(self._path)
        if production is not None and production.resumption.render_error is not None:
            return production.resumption.render_error(error)
        return b"data: " + msgspec.json.encode(error_envelope(error)) + b"\n\n"
