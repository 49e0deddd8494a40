"""The outermost layer: gives every request its id and its one log line.

Pure ASGI, around the framework, so that unknown paths are logged as well. Lines hold facts of the
request, never its content and never its query string.
"""

import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TypeAlias

import structlog
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from service.access.caller import ANYONE, Caller
from service.errors import InternalError, ServerError, ServiceError
from service.stages import StageTimes, milliseconds

Fact: TypeAlias = str | int | float | None

_WELL_FORMED_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_STATE_KEY = "request_record"
_CLIENT_CLOSED_REQUEST = 499

logger = structlog.get_logger()


@dataclass(slots=True, eq=False)
class RequestRecord:
    """What one request's log line says; every layer adds what it knows.

    stages: where the time went. facts: further keys of the line: tokens, pictures, finish reason.
    started_at: `time.perf_counter` at the request's arrival. caller: who asks.
    """

    request_id: str
    caller: Caller = ANYONE
    started_at: float = field(default_factory=time.perf_counter)
    status_code: int | None = None
    error_code: str | None = None
    client_gone: bool = False
    failed: bool = False
    stages: StageTimes = field(default_factory=StageTimes)
    facts: dict[str, Fact] = field(default_factory=dict[str, Fact])

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
        self.failed = isinstance(error, ServerError)


def record_of(scope: Scope) -> RequestRecord:
    """Return the record of the request that a scope belongs to."""
    return scope["state"][_STATE_KEY]


class RequestLog:
    """Wraps an application; adds `X-Request-Id` to every response.

    Responses to what was worked on get `Server-Timing` as well: the stages so far.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and log it when its response is complete."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(_request_id(scope))
        scope["state"][_STATE_KEY] = record
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=record.request_id)
        try:
            await self._app(scope, receive, _Reply(record, send).send)
        except Exception:
            # The response had begun, so nothing can be told; the server closes the connection.
            record.note_error(InternalError())
            logger.exception("Unhandled error")
        finally:
            _log(scope, record)


class _Reply:
    """Sends a response, noting its status and adding what every response carries."""

    __slots__ = ("_record", "_send")

    def __init__(self, record: RequestRecord, send: Send) -> None:
        self._record = record
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._record.status_code = message["status"]
            record = self._record
            headers = [*message["headers"], (b"x-request-id", record.request_id.encode())]
            if record.stages.prompt is not None:
                # A reply that tells its times has set the total, and header and body agree.
                stages = record.timed() if record.stages.total is None else record.stages
                headers.append((b"server-timing", stages.header()))
            message["headers"] = headers
        await self._send(message)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _WELL_FORMED_ID.fullmatch(value):
            return value.decode("ascii")
    return secrets.token_hex(16)


def _log(scope: HTTPScope, record: RequestRecord) -> None:
    status_code = (
        _CLIENT_CLOSED_REQUEST if record.client_gone else record.status_code or InternalError.status
    )
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
