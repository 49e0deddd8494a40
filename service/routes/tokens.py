"""`POST /tokenize` and `POST /detokenize`: what a prompt costs, told without the engine."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import msgspec
from litestar import post
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from inference.protocol import ModelFacts, SamplingParams
from service.chat import Chat
from service.config import Settings
from service.conversation import Conversation
from service.errors import RequestInvalid
from service.http.attendance import Attendance
from service.http.body import read_json_body
from service.http.deadline import Deadline
from service.request_log import RequestRecord, record_of
from service.routes.native import AnyRequest
from service.routes.openai_fields import decode_request
from service.routes.openai_input import check_model, check_token_ids
from service.routes.openai_messages import PixelBounds, canonical_messages, canonical_tools
from service.routes.openai_reply import Detokenized, Tokenized
from service.routes.openai_schema import DetokenizeRequest, TokenizeRequest

Asked = TypeVar("Asked")

# Nothing is generated; a conversation must say how all the same.
_NO_SAMPLING = SamplingParams(max_tokens=1)

_read_tokenize = partial(decode_request, decoder=msgspec.json.Decoder(TokenizeRequest))
_read_detokenize = partial(decode_request, decoder=msgspec.json.Decoder(DetokenizeRequest))
_encoder = msgspec.json.Encoder()


class TokenRoutes:
    """The handlers, bound to what they need."""

    def __init__(self, chat: Chat, settings: Settings) -> None:
        self._chat = chat
        self._settings = settings

    def handlers(self) -> list[HTTPRouteHandler]:
        """Make the handlers to register."""
        return [
            post("/tokenize", status_code=200)(self.tokenize),
            post("/detokenize", status_code=200)(self.detokenize),
        ]

    async def tokenize(self, request: AnyRequest) -> ASGIResponse:
        """Make the tokens of a text or of messages with their pictures."""
        record = record_of(request.scope)
        with self._attendance(request) as attendance:
            asked = await self._read(request, _read_tokenize)
            attendance.watch()
            model = self._chat.model
            check_model(asked.model, model)
            return _reply(await self._tokenized(asked, model, record))

    async def detokenize(self, request: AnyRequest) -> ASGIResponse:
        """Spell tokens."""
        with self._attendance(request) as attendance:
            asked = await self._read(request, _read_detokenize)
            attendance.watch()
            model = self._chat.model
            check_model(asked.model, model)
            check_token_ids(asked.tokens, "tokens", model)
            return _reply(Detokenized(prompt=await self._chat.spell(asked.tokens)))

    async def _tokenized(
        self, asked: TokenizeRequest, model: ModelFacts, record: RequestRecord
    ) -> Tokenized:
        num_image_tokens = 0
        if asked.messages is None:
            if asked.prompt is None or asked.tools is not None:
                raise _one_of_two("prompt" if asked.prompt is None else "tools")
            token_ids = await self._chat.tokenise(asked.prompt)
        elif asked.prompt is not None:
            raise _one_of_two("prompt")
        else:
            conversation = Conversation(
                messages=canonical_messages(
                    asked.messages, PixelBounds(asked.min_pixels, asked.max_pixels)
                ),
                tools=canonical_tools(asked.tools or ()),
                sampling=_NO_SAMPLING,
            )
            prompt = (await self._chat.prepare(conversation, record)).prompt
            token_ids, num_image_tokens = prompt.token_ids, prompt.num_image_tokens
        return Tokenized(
            tokens=token_ids,
            count=len(token_ids),
            max_model_len=model.max_model_len,
            image_tokens=num_image_tokens,
        )

    def _attendance(self, request: AnyRequest) -> Attendance:
        deadline = Deadline(request.scope, self._settings.request_timeout_seconds)
        return Attendance(request.receive, deadline)

    async def _read(self, request: AnyRequest, read: Callable[[bytes], Asked]) -> Asked:
        max_bytes = self._settings.max_body_bytes
        return await read_json_body(request.scope, request.receive, max_bytes, read)


def _one_of_two(param: str) -> RequestInvalid:
    return RequestInvalid(
        "field_conflict", "Send either prompt, or messages with or without tools.", param=param
    )


def _reply(body: msgspec.Struct) -> ASGIResponse:
    return ASGIResponse(body=_encoder.encode(body), media_type="application/json")
