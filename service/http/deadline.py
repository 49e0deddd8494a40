"""How much time a request has: the service's limit, or less where its client says so.

A client says so in the header `Request-Timeout-Ms`, in the body's `deadline_ms`, or in both; the
least counts. All count from the request's arrival, so that reading the body, fetching and decoding
pictures, the queue and the answer share one time. Clocks do not cross processes: the engine is told
the seconds that are left.
"""

from typing import Annotated, TypeAlias

import anyio
from litestar.types import Scope
from msgspec import Meta

from service.errors import RequestInvalid, Spent

MAX_DEADLINE_MS = 24 * 60 * 60 * 1000

DeadlineMs: TypeAlias = Annotated[
    Annotated[int, Meta(ge=1, le=MAX_DEADLINE_MS)] | None,
    Meta(
        description="Milliseconds from the request's arrival within which the answer is of use, "
        "within the service's own limit. The header `Request-Timeout-Ms` says the same."
    ),
]

_HEADER = b"request-timeout-ms"


class Deadline:
    """When one request's time is over; made when it arrives, in every dialect's handler alike.

        deadline = Deadline(request.scope, settings.request_timeout_seconds)
        with Attendance(request.receive, deadline) as attendance:
            asked = ...                     # read the body
            deadline.cut(asked.deadline_ms)
            exchange = Exchange(..., deadline=deadline)
            attendance.watch()

    ends_at: on the event loop's clock. spent: what was computed so far, for the error's body.
    """

    def __init__(self, scope: Scope, limit_seconds: float) -> None:
        """Begin to count.

        Raises:
            RequestInvalid: the header is no number of milliseconds from 1 to MAX_DEADLINE_MS.
        """
        self._began_at = anyio.current_time()
        self.ends_at = self._began_at + limit_seconds
        self.spent: Spent | None = None
        self.cut(_milliseconds_of(scope))

    @property
    def seconds_left(self) -> float:
        """Seconds until the end; negative behind it."""
        return self.ends_at - anyio.current_time()

    def cut(self, milliseconds: int | None) -> None:
        """Bring the end forward, if so many milliseconds from the arrival on are less."""
        if milliseconds is not None:
            self.ends_at = min(self.ends_at, self._began_at + milliseconds / 1000)


def _milliseconds_of(scope: Scope) -> int | None:
    values = [value for name, value in scope["headers"] if name == _HEADER]
    if not values:
        return None
    text = values[-1].strip()
    if not (text.isdigit() and len(text) <= len(str(MAX_DEADLINE_MS))):
        raise RequestInvalid(
            "type_invalid", "The header is no number of milliseconds.", param="Request-Timeout-Ms"
        )
    if not 1 <= int(text) <= MAX_DEADLINE_MS:
        raise RequestInvalid(
            "value_out_of_range",
            f"The header takes 1 to {MAX_DEADLINE_MS} milliseconds.",
            param="Request-Timeout-Ms",
        )
    return int(text)
