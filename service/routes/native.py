"""The native dialect: `POST /v1/chat` and `POST /v1/chat/stream`, JSON or an HTML form.

Its contract is older than this service and stays as it is: the status of every fault, the shape of
every reply. What it has no word for is added under OpenAI's names.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeAlias

import msgspec
from litestar import Request, post
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp

from service.chat import Chat
from service.config import Settings
from service.errors import DeadlineExceeded, ServiceError
from service.exchange import Exchange
from service.http.attendance import Attendance
from service.http.deadline import Deadline
from service.http.error_reply import Envelope
from service.http.event_stream import EventStream
from service.request_log import RequestRecord, record_of
from service.routes.native_input import read_question
from service.routes.native_schema import (
    ChatReply,
    ChatUsage,
    ChunkEvent,
    DoneEvent,
    ErrorEvent,
    ErrorReply,
    SpentUsage,
)

AnyRequest: TypeAlias = Request[Any, Any, Any]

_GIB = 1024**3

_encoder = msgspec.json.Encoder()


class NativeRoutes:
    """The dialect's handlers, bound to what they need."""

    def __init__(self, chat: Chat, settings: Settings) -> None:
        self._chat = chat
        self._settings = settings

    def handlers(self) -> list[HTTPRouteHandler]:
        """Make the handlers to register."""
        return [
            post("/v1/chat", status_code=200)(self.answer),
            post("/v1/chat/stream", status_code=200)(self.stream),
        ]

    async def answer(self, request: AnyRequest) -> ASGIResponse:
        """Answer in one piece."""
        record = record_of(request.scope)
        deadline = self._deadline(request)
        with Attendance(request.receive, deadline) as attendance:
            exchange = await self._begin(request, record, deadline)
            attendance.watch()
            texts = await exchange.texts()
        reply = ChatReply(
            result=texts[0],
            usage=self._usage(exchange),
            timings_ms=record.timed(),
            finish_reason=str(exchange.finishes[0].reason),
            request_id=record.request_id,
        )
        return ASGIResponse(body=_encoder.encode(reply), media_type="application/json")

    async def stream(self, request: AnyRequest) -> ASGIApp:
        """Answer piece by piece."""
        record = record_of(request.scope)
        deadline = self._deadline(request)
        with Attendance(request.receive, deadline):
            exchange = await self._begin(request, record, deadline)

        def render_error(error: ServiceError) -> bytes:
            event = ErrorEvent(
                error=error.message,
                code=error.code,
                usage=_spent(error),
                request_id=record.request_id,
            )
            return _event(event)

        return EventStream(
            self._events(exchange, record),
            render_error,
            deadline=deadline,
            record=record,
        )

    async def _events(
        self, exchange: Exchange, record: RequestRecord
    ) -> AsyncGenerator[bytes, None]:
        async with aclosing(exchange.deltas()) as deltas:
            async for delta in deltas:
                if delta.text:
                    yield _event(ChunkEvent(chunk=delta.text))
        yield _event(
            DoneEvent(
                usage=self._usage(exchange),
                timings_ms=record.timed(),
                finish_reason=str(exchange.finishes[0].reason),
                request_id=record.request_id,
            )
        )

    def _deadline(self, request: AnyRequest) -> Deadline:
        return Deadline(request.scope, self._settings.request_timeout_seconds)

    async def _begin(
        self, request: AnyRequest, record: RequestRecord, deadline: Deadline
    ) -> Exchange:
        settings = self._settings
        question = await read_question(request.scope, request.receive, settings.max_body_bytes)
        deadline.cut(question.deadline_ms)
        return Exchange(
            self._chat,
            question.conversation,
            record,
            default_max_tokens=question.default_max_tokens,
            deadline=deadline,
        )

    def _usage(self, exchange: Exchange) -> ChatUsage:
        usage, stats = exchange.usage, self._chat.engine.stats
        return ChatUsage(
            input_tokens=usage.num_prompt_tokens,
            output_tokens=usage.num_output_tokens,
            text_tokens=usage.num_text_tokens,
            image_tokens=usage.num_image_tokens,
            cached_tokens=usage.num_cached_tokens,
            document_pages=usage.num_pages,
            inference_time_ms=round(exchange.inference_seconds * 1e3, 2),
            gpu_memory_used_gb=gigabytes(stats.gpu_memory_used_bytes if stats else 0),
        )


def _render_error(error: ServiceError, request_id: str) -> bytes:
    reply = ErrorReply(
        message=error.message,
        usage=_spent(error),
        code=error.code,
        param=error.param,
        request_id=request_id,
    )
    return _encoder.encode(reply)


def _spent(error: ServiceError) -> SpentUsage | None:
    """What an answer that came too late took until then."""
    if not isinstance(error, DeadlineExceeded) or error.spent is None:
        return None
    num_prompt_tokens, num_output_tokens = error.spent
    return SpentUsage(input_tokens=num_prompt_tokens, output_tokens=num_output_tokens)


NATIVE_ENVELOPE = Envelope(_render_error, schema_fault_status=422)


def gigabytes(num_bytes: int) -> float:
    """Convert to the GiB that the contract's `_gb` fields count in."""
    return round(num_bytes / _GIB, 3)


def _event(event: ChunkEvent | DoneEvent | ErrorEvent) -> bytes:
    return b"data: " + _encoder.encode(event) + b"\n\n"
