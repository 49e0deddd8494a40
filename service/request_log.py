"""The outermost layer: gives every request its id, its one log line, its counts and its trace.

Pure ASGI, around the framework, so that unknown paths are logged as well. All three hold facts of
the request, never its content and never its query string.
"""

import re
import secrets
import time
from collections.abc import Container
from dataclasses import dataclass, field
from typing import TypeAlias

import structlog
from litestar.types import (
    ASGIApp,
    HTTPResponseStartEvent,
    HTTPScope,
    Message,
    Receive,
    Scope,
    Send,
)

from service.access.caller import ANYONE, Caller
from service.errors import DeadlineExceeded, InternalError, ServiceError
from service.metrics.worker_metrics import Stage, WorkerMetrics
from service.stages import StageTimes, milliseconds
from service.streams.resumption import Resumption
from service.tracing.request_trace import RequestTrace, Tracer

Fact: TypeAlias = str | int | float | None

_WELL_FORMED_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_STATE_KEY = "request_record"
_CLIENT_CLOSED_REQUEST = 499
_DEADLINE_EXCEEDED = DeadlineExceeded().code
_EVENT_STREAM = b"text/event-stream; charset=utf-8"

logger = structlog.get_logger()


@dataclass(slots=True, eq=False)
class RequestRecord:
    """What one request's log line, metrics and trace say; every layer adds what it knows.

    stages: where the time went. facts: further keys of the line: tokens, pictures, finish reason.
    started_at: `time.perf_counter` at the request's arrival. caller: who asks.
    stage: what is being done; entered: when that began, of this stage and of those before.
    engine_id: what the engine calls the request. traceparent: of its span; empty is none.
    resumption: the journal of a stream that may go on elsewhere; None for any other request.
    """

    request_id: str
    caller: Caller = ANYONE
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)
    started_at: float = field(default_factory=time.perf_counter)
    status_code: int | None = None
    error_code: str | None = None
    client_gone: bool = False
    failed: bool = False
    stages: StageTimes = field(default_factory=StageTimes)
    facts: dict[str, Fact] = field(default_factory=dict[str, Fact])
    stage: Stage = "reading"
    entered: dict[Stage, float] = field(default_factory=dict[Stage, float])
    engine_id: str | None = None
    model_name: str | None = None
    traceparent: str = ""
    resumption: Resumption | None = None

    def enter(self, stage: Stage) -> None:
        """Note that the next stage begins."""
        self.stage = stage
        self.entered[stage] = time.perf_counter()

    def milliseconds(self) -> float:
        """Measure the time since the request's arrival."""
        return milliseconds(time.perf_counter() - self.started_at)

    def timed(self) -> StageTimes:
        """Return the stages' times so far, with a total until now."""
        self.stages.total = self.milliseconds()
        return self.stages

    def note_error(self, error: ServiceError) -> None:
        """Remember how the request ended, also where its status was sent before."""
        self.error_code = error.code
        self.failed = error.status >= InternalError.status


def bind_record(scope: Scope, record: RequestRecord) -> None:
    """Make this the record of the request that a scope belongs to."""
    scope["state"][_STATE_KEY] = record


def record_of(scope: Scope) -> RequestRecord:
    """Return the record of the request that a scope belongs to."""
    return scope["state"][_STATE_KEY]


class RequestLog:
    """Wraps an application; adds `X-Request-Id` to every response.

    Responses to what was worked on get `Server-Timing` as well: the stages so far.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: WorkerMetrics,
        routes: Container[str],
        tracer: Tracer | None = None,
    ) -> None:
        """routes: the paths that are counted by name where nothing was routed, as in a refusal."""
        self._app = app
        self._metrics = metrics
        self._routes = routes
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and log it when its response is complete."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(_request_id(scope), metrics=self._metrics)
        bind_record(scope, record)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=record.request_id)
        trace = self._begin_trace(scope, record)
        exchange = _HttpExchange(scope, record, send, self._routes)
        self._metrics.request_begins()
        try:
            await self._app(scope, receive, exchange.send)
        except Exception:
            # The response had begun, so nothing can be told; the server closes the connection.
            record.note_error(InternalError())
            logger.exception("Unhandled error")
        finally:
            exchange.end()
            if trace is not None:
                trace.end(record, exchange.route, exchange.status_code)
            _log(scope, record, exchange.status_code)

    def _begin_trace(self, scope: HTTPScope, record: RequestRecord) -> RequestTrace | None:
        if self._tracer is None:
            return None
        trace = self._tracer.begin(scope, record.started_at)
        record.traceparent = trace.traceparent
        structlog.contextvars.bind_contextvars(trace_id=trace.trace_id, span_id=trace.span_id)
        return trace


class _HttpExchange:
    """One request and its response, counted just before the response's last bytes are sent."""

    __slots__ = (
        "_is_counted",
        "_is_error_counted",
        "_is_stream",
        "_record",
        "_routes",
        "_scope",
        "_send",
    )

    def __init__(
        self, scope: HTTPScope, record: RequestRecord, send: Send, routes: Container[str]
    ) -> None:
        self._scope = scope
        self._record = record
        self._send = send
        self._routes = routes
        self._is_stream = False
        self._is_counted = False
        self._is_error_counted = False

    @property
    def route(self) -> str:
        """The template of the path; never what a client made up."""
        scope = self._scope
        # The scope's own `get` has no type.
        template = scope["path_template"] if "path_template" in scope else ""  # noqa: SIM401
        if not template and scope["path"] in self._routes:
            template = scope["path"]
        return template or "other"

    @property
    def status_code(self) -> int:
        """What was sent, or why nothing was."""
        record = self._record
        if record.client_gone:
            return _CLIENT_CLOSED_REQUEST
        return record.status_code or InternalError.status

    async def send(self, message: Message) -> None:
        """Pass on a part of the response."""
        if message["type"] == "http.response.start":
            self._start(message)
        elif self._record.stage == "sending" or not message.get("more_body", False):
            self._count()  # a stream's client may take its last event for the end
        await self._send(message)

    def end(self) -> None:
        """Count what no complete response has counted."""
        self._count()
        record, metrics = self._record, self._record.metrics
        if record.client_gone:
            metrics.client_left(record.stage, record.engine_id)
        if record.error_code is not None and not self._is_error_counted:
            metrics.refused(record.error_code)
        metrics.request_ends()
        if self._is_stream:
            metrics.stream_ends()

    def _start(self, message: HTTPResponseStartEvent) -> None:
        record = self._record
        record.status_code = message["status"]
        headers = [*message["headers"], (b"x-request-id", record.request_id.encode())]
        if not record.stages.is_empty:
            # A reply that tells its times has set the total, and header and body agree.
            stages = record.timed() if record.stages.total is None else record.stages
            headers.append((b"server-timing", stages.header()))
        message["headers"] = headers
        self._is_stream = (b"content-type", _EVENT_STREAM) in headers
        if self._is_stream:
            record.metrics.stream_begins()

    def _count(self) -> None:
        if self._is_counted:
            return
        self._is_counted = True
        record, metrics = self._record, self._record.metrics
        metrics.response(self.route, self.status_code, record.caller.name)
        if record.error_code is not None:
            self._is_error_counted = True
            metrics.refused(record.error_code)
        metrics.stages(record.stages)
        if record.error_code == _DEADLINE_EXCEEDED:
            metrics.deadline_missed(record.stage, record.engine_id)
        elif record.stage == "sending" and not record.client_gone:
            metrics.answered(time.perf_counter() - record.started_at)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _WELL_FORMED_ID.fullmatch(value):
            return value.decode("ascii")
    return secrets.token_hex(16)


def _log(scope: HTTPScope, record: RequestRecord, status_code: int) -> None:
    client = scope["client"]
    facts: dict[str, object] = {
        "method": scope["method"],
        "url": scope["path"],
        "status_code": status_code,
        "process_time_ms": record.milliseconds(),
        "client_host": client[0] if client else None,
        **({"caller": record.caller.name} if record.caller.name else {}),
        **record.facts,
        **record.stages.facts(),
    }
    if record.error_code is not None:
        facts["error_code"] = record.error_code
    if record.failed:
        logger.error("HTTP request failed", **facts)
    else:
        logger.info("HTTP request processed", **facts)
