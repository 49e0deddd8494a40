"""The OpenAI dialect's `POST /v1/chat/completions`: one request, a whole reply or a stream."""

import hashlib
import time
from functools import partial

import msgspec
from litestar import post
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp
from msgspec import UNSET

from inference.protocol import ModelFacts
from service.chat import Chat
from service.config import Settings
from service.exchange import Exchange
from service.http.attendance import Attendance
from service.http.body import read_json_body
from service.http.deadline import Deadline
from service.http.event_stream import EventStream
from service.request_log import RequestRecord, record_of
from service.routes.native import AnyRequest
from service.routes.openai_fields import decode_request, ignored_headers
from service.routes.openai_input import (
    check_model,
    check_num_answers,
    conversation_of,
    names_no_limit,
)
from service.routes.openai_reply import Completion, CompletionChunk
from service.routes.openai_schema import CompletionRequest
from service.routes.openai_stream import ChunkStream
from service.routes.openai_whole import WholeAnswers

_read = partial(decode_request, decoder=msgspec.json.Decoder(CompletionRequest))
_encoder = msgspec.json.Encoder()


class OpenAIRoutes:
    """The dialect's handlers, bound to what they need."""

    def __init__(self, chat: Chat, settings: Settings) -> None:
        self._chat = chat
        self._settings = settings

    def handlers(self) -> list[HTTPRouteHandler]:
        """Make the handlers to register."""
        return [post("/v1/chat/completions", status_code=200)(self.complete)]

    async def complete(self, request: AnyRequest) -> ASGIApp:
        """Answer in one piece or as a stream."""
        record = record_of(request.scope)
        deadline = Deadline(request.scope, self._settings.request_timeout_seconds)
        with Attendance(request.receive, deadline) as attendance:
            asked = await read_json_body(
                request.scope, request.receive, self._settings.max_body_bytes, _read
            )
            deadline.cut(asked.deadline_ms)
            model, exchange = self._begin(asked, record, deadline)
            if not asked.stream:
                attendance.watch()
                return await _whole(asked, exchange, model, record)
        usage = None if asked.stream_options and asked.stream_options.include_usage else UNSET
        template = CompletionChunk(
            id=_completion_id(record),
            created=int(time.time()),
            model=model.name,
            system_fingerprint=_fingerprint(model),
            choices=[],
            usage=usage,
        )
        stream = ChunkStream(exchange, template, _functions(asked))
        return EventStream(
            stream.events(),
            stream.error_events,
            deadline=deadline,
            record=record,
            headers=ignored_headers(asked),
        )

    def _begin(
        self, asked: CompletionRequest, record: RequestRecord, deadline: Deadline
    ) -> tuple[ModelFacts, Exchange]:
        model = self._chat.model
        check_model(asked.model, model)
        check_num_answers(asked.n, self._chat.engine.limits)
        exchange = Exchange(
            self._chat,
            conversation_of(asked, model),
            record,
            default_max_tokens=names_no_limit(asked),
            deadline=deadline,
        )
        return model, exchange


async def _whole(
    asked: CompletionRequest, exchange: Exchange, model: ModelFacts, record: RequestRecord
) -> ASGIResponse:
    created = int(time.time())
    answers = WholeAnswers(exchange, _functions(asked))
    choices = await answers.choices()
    completion = Completion(
        id=_completion_id(record),
        created=created,
        model=model.name,
        system_fingerprint=_fingerprint(model),
        choices=choices,
        usage=answers.usage(),
    )
    return ASGIResponse(
        body=_encoder.encode(completion),
        media_type="application/json",
        headers=ignored_headers(asked),
    )


def _completion_id(record: RequestRecord) -> str:
    return f"chatcmpl-{record.request_id}"


def _functions(asked: CompletionRequest) -> frozenset[str]:
    if asked.tool_choice == "none":
        return frozenset()
    return frozenset(tool.function.name for tool in asked.tools or ())


def _fingerprint(model: ModelFacts) -> str:
    """Name what answers: the same words from the same checkpoint on the same kind of device."""
    return "fp_" + hashlib.blake2b(_encoder.encode(model), digest_size=6).hexdigest()
