"""How long one request's body may still take, told from what has come of it.

The protocol keeps it; the request learns from it, at its next `receive`, why no more will come.
"""

from typing import TYPE_CHECKING, ClassVar, cast

from litestar.types import HTTPReceiveMessage, Receive

from service.http.connection_limits import ConnectionLimits

if TYPE_CHECKING:
    from service.errors import ServiceError

# Within this, no rate is asked for: connections start slowly, and small bodies are soon whole.
_GRACE_SECONDS = 10.0


class BodyClock:
    """One body's. Times are the event loop's.

    fault: set once no more of the body will be taken.
    """

    STATE_KEY: ClassVar[str] = "body_clock"  # in the request's scope, under `state`

    __slots__ = ("_limits", "_num_bytes", "_started_at", "fault")

    def __init__(self, limits: ConnectionLimits, now: float) -> None:
        self._limits = limits
        self.fault: ServiceError | None = None
        self.restart(now)

    def restart(self, now: float) -> None:
        """Forget what was: the client had to wait for us."""
        self._started_at = now
        self._num_bytes = 0

    def count(self, num_bytes: int) -> None:
        """Take note of what came."""
        self._num_bytes += num_bytes

    def ends_at(self) -> float:
        """Tell when time is over if nothing more comes."""
        earned = self._num_bytes / self._limits.min_body_bytes_per_second
        seconds = min(_GRACE_SECONDS + earned, self._limits.body_timeout_seconds)
        return self._started_at + seconds

    def attend(self, receive: Receive) -> Receive:
        """Make a request's `receive` raise the fault when there is one."""

        async def receive_in_time() -> HTTPReceiveMessage:
            message = cast("HTTPReceiveMessage", await receive())
            is_open = message["type"] == "http.request" and message["more_body"]
            if is_open and self.fault is not None:
                raise self.fault
            return message

        return receive_in_time
