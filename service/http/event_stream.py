"""Server-sent events over ASGI: heartbeats, a patient start, an end in every case.

It knows bytes and time; what an event says is the dialect's. The framework's own event response
is not used: it has no heartbeat and does not close its generator when the client leaves.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from types import MappingProxyType

import anyio
import structlog
from litestar.types import Receive, Scope, Send

from service.errors import DeadlineExceeded, InternalError, ServiceError
from service.http.attendance import Attendance, ClientGone
from service.http.deadline import Deadline
from service.request_log import RequestRecord

HEARTBEAT_SECONDS = 15.0

_HEARTBEAT = b": keep-alive\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or a proxy would collect events before it passes them on
]

logger = structlog.get_logger()


class EventStream:
    """An ASGI response that writes what a generator yields, each piece one or more whole events.

    The response starts with the first event or the first heartbeat, whichever comes first; until
    then an error is raised, and becomes an ordinary reply with its own status. After that it is
    told with `render_error`, as the last event. A client that takes nothing between two heartbeats
    counts as gone.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        render_error: Callable[[ServiceError], bytes],
        *,
        deadline: Deadline,
        record: RequestRecord,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """headers: of this response, beside those of all streams; their names in lower case."""
        self._events = events
        self._render_error = render_error
        self._deadline = deadline
        self._record = record
        self._headers = [
            *_HEADERS,
            *((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()),
        ]
        self._started = False
        if record.resumption is not None and record.resumption.render_error is None:
            record.resumption.render_error = render_error
        self._num_sending = 0
        self._num_sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the response, all of it."""
        try:
            await self._write_events(receive, send)
        except ClientGone:
            if not self._started:
                raise
            self._record.client_gone = True
            return
        except Exception as error:
            resumption = self._record.resumption
            had_started = resumption is not None and resumption.kept is not None
            if not (self._started or had_started):
                raise
            await self._end(send, self._render_error(self._told(error)))
        else:
            await self._end(send)

    async def _write_events(self, receive: Receive, send: Send) -> None:
        failure: Exception | None = None
        try:
            with Attendance(receive, self._deadline) as attendance:
                attendance.watch()
                async with anyio.create_task_group() as companions:
                    over = anyio.Event()
                    companions.start_soon(self._beat, send, attendance, over)
                    try:
                        async for event in self._events:
                            await self._write(send, event)
                    except Exception as error:  # noqa: BLE001 - leaves the group as it is
                        failure = error
                    # It returns at this; cancelled, its traceback would keep all that is here until
                    # the garbage collector comes. What it writes just now is not waited for.
                    over.set()
                    companions.cancel_scope.cancel()
        finally:
            # Closed here and not by garbage collection: it cancels the request in the engine.
            await self._events.aclose()
        if failure is not None:
            raise failure

    async def _beat(self, send: Send, attendance: Attendance, over: anyio.Event) -> None:
        while True:
            num_sent = self._num_sent
            with anyio.move_on_after(HEARTBEAT_SECONDS):
                await over.wait()
                return
            if num_sent != self._num_sent:
                continue
            if self._num_sending:
                attendance.give_up()
            with anyio.move_on_after(HEARTBEAT_SECONDS) as patience:
                await self._write(send, _HEARTBEAT)
            if patience.cancelled_caught:
                attendance.give_up()

    async def _write(self, send: Send, event: bytes) -> None:
        self._num_sending += 1
        try:
            if not self._started:
                self._started = True
                await send({"type": "http.response.start", "status": 200, "headers": self._headers})
            await send({"type": "http.response.body", "body": event, "more_body": True})
        finally:
            self._num_sending -= 1
        self._num_sent += 1

    async def _end(self, send: Send, last_event: bytes = b"") -> None:
        # Nobody watches any more: a client that does not read must not hold the request open.
        with anyio.move_on_after(HEARTBEAT_SECONDS):
            if not self._started:
                await self._write(send, last_event)
                last_event = b""
            await send({"type": "http.response.body", "body": last_event, "more_body": False})

    def _told(self, error: Exception) -> ServiceError:
        if not isinstance(error, ServiceError):
            logger.error("Unhandled error in a stream", exc_info=error)
            error = InternalError()
        if isinstance(error, DeadlineExceeded) and error.spent is None:
            # While an event was on its way, what makes them had not been closed, nor summed up.
            error = DeadlineExceeded(self._deadline.spent)
        self._record.note_error(error)
        return error
