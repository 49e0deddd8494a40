"""What the service needs of tracing: to begin a request's trace and to end it.

Implemented by `service.tracing.opentelemetry_tracer`, which alone knows the libraries.
"""

from typing import TYPE_CHECKING, Protocol

from litestar.types import HTTPScope

if TYPE_CHECKING:
    from service.request_log import RequestRecord


class RequestTrace(Protocol):
    """One request's span, and those below it once it has ended.

    traceparent: the W3C header that names it. trace_id, span_id: in hexadecimal.
    """

    traceparent: str
    trace_id: str
    span_id: str

    def end(self, record: "RequestRecord", route: str, status_code: int) -> None:
        """End it with all that is known of the request; what it took becomes spans below."""
        ...


class Tracer(Protocol):
    """Begins traces; one per worker."""

    def begin(self, scope: HTTPScope, started_at: float) -> RequestTrace:
        """Begin a request's span, below the caller's where the request names one.

        started_at: on the clock of `time.perf_counter`.
        """
        ...

    def close(self) -> None:
        """Send what is not sent yet; takes a second or so where the collector is away."""
        ...
