"""`POST /v1/preview`: what the model would see of any request, told without the engine.

The request goes the same way as for an answer, up to the wire, so its figures are the answer's.
"""

from itertools import groupby
from typing import Annotated

import msgspec
from litestar import post
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse
from msgspec import Meta

from service.chat import Chat, Prepared
from service.config import Settings
from service.conversation import Conversation, MediaKind
from service.errors import ClientError
from service.http.attendance import Attendance
from service.http.body import media_type, read_json_body
from service.http.deadline import Deadline
from service.media.decoded_image import DecodedImage
from service.media.medium import Document, Medium
from service.media.sampled_video import SampledVideo
from service.request_log import RequestRecord, record_of
from service.routes.native import AnyRequest
from service.routes.native_input import Question, question_of_json, read_question
from service.routes.openai_fields import decode_request
from service.routes.openai_input import (
    check_model,
    check_num_answers,
    conversation_of,
    names_no_limit,
)
from service.routes.openai_schema import CompletionRequest
from service.stages import StageTimes

_encoder = msgspec.json.Encoder()
_completion_decoder = msgspec.json.Decoder(CompletionRequest)
# Faults of the request as a whole: each medium by itself would be none.
_JOINT_FAULTS = ("too_many_images", "media_budget_exceeded", "pdf_too_many_pages")


class _Probe(msgspec.Struct):
    """Tells the dialects apart: only one has messages."""

    messages: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_probe_decoder = msgspec.json.Decoder(_Probe)


class SeenImage(msgspec.Struct, frozen=True, kw_only=True):
    """One picture, page or video as the model sees it; sizes are in pixels."""

    format: Annotated[str, Meta(description="Of the file, by its bytes.")]
    page: Annotated[int | None, Meta(description="Of a document, counted from 1.")] = None
    source_width: Annotated[int, Meta(description="Upright, before resizing; boxes refer to it.")]
    source_height: int
    width: Annotated[int, Meta(description="After resizing.")]
    height: int
    num_frames: int = 1
    timestamps: Annotated[
        list[float], Meta(description="Of a video, in seconds: one for each pair of frames.")
    ] = []
    tokens: int
    notes: Annotated[
        list[str], Meta(description="What was done to its colours and its position.")
    ] = []
    hash: Annotated[str, Meta(description="Of the pixels that the model sees, and their shape.")]


class SeenMedium(msgspec.Struct, frozen=True, kw_only=True):
    """What one part of the request shows."""

    param: Annotated[str, Meta(description="The field that brought it.")]
    kind: MediaKind
    num_pages: Annotated[int | None, Meta(description="Of the whole document.")] = None
    images: list[SeenImage]


class PreviewRefusal(msgspec.Struct, frozen=True, kw_only=True):
    """One reason why the request would get no answer."""

    status: int
    code: str
    message: str
    param: str | None


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What the model would see. The counts are null where the request would be refused."""

    accepted: bool
    model: str
    prompt_tokens: int | None = None
    text_tokens: int | None = None
    image_tokens: int | None = None
    max_output_tokens: Annotated[
        int | None, Meta(description="Room that the prompt leaves in the model's context.")
    ] = None
    prompt: Annotated[
        str | None,
        Meta(description="The prompt as text; a run of visual tokens is shown by its length."),
    ] = None
    media: list[SeenMedium] = []
    refusals: list[PreviewRefusal] = []
    timings_ms: StageTimes


class PreviewRoutes:
    """The handler, bound to what it needs."""

    def __init__(self, chat: Chat, settings: Settings) -> None:
        self._chat = chat
        self._settings = settings

    def handlers(self) -> list[HTTPRouteHandler]:
        """Make the handlers to register."""
        return [post("/v1/preview", status_code=200)(self.preview)]

    async def preview(self, request: AnyRequest) -> ASGIResponse:
        """Tell what would reach the model; what would be refused is part of the reply."""
        record = record_of(request.scope)
        deadline = Deadline(request.scope, self._settings.request_timeout_seconds)
        with Attendance(request.receive, deadline) as attendance:
            question = await self._read(request)
            attendance.watch()
            preview = await self._look(question, record)
        return ASGIResponse(body=_encoder.encode(preview), media_type="application/json")

    async def _read(self, request: AnyRequest) -> Question:
        max_bytes = self._settings.max_body_bytes
        if media_type(request.scope).name != "application/json":
            return await read_question(request.scope, request.receive, max_bytes)
        return await read_json_body(
            request.scope, request.receive, max_bytes, self._question_of_json
        )

    def _question_of_json(self, body: bytes) -> Question:
        if not _has_messages(body):
            return question_of_json(body)
        asked = decode_request(body, _completion_decoder)
        model = self._chat.model
        check_model(asked.model, model)
        return Question(conversation_of(asked, model), names_no_limit(asked))

    async def _look(self, question: Question, record: RequestRecord) -> Preview:
        conversation = question.conversation
        model = self._chat.model
        try:
            check_num_answers(conversation.num_answers, self._chat.engine.limits)
            prepared = await self._chat.prepare(conversation, record)
            conversation.output.grammar(prepared.prompt.opens_reasoning)
            if not question.default_max_tokens:
                prepared.prompt.require_room(conversation.sampling.max_tokens)
        except ClientError as error:
            return Preview(
                accepted=False,
                model=model.name,
                refusals=await self._refusals(conversation, error, record),
                timings_ms=record.timed(),
            )
        prompt = prepared.prompt
        factor = model.patch_size * model.merge_size
        return Preview(
            accepted=True,
            model=model.name,
            prompt_tokens=len(prompt.token_ids),
            text_tokens=prompt.num_text_tokens,
            image_tokens=prompt.num_image_tokens,
            max_output_tokens=prompt.max_output_tokens,
            prompt=self._spell(prepared),
            media=[
                _seen(part.param, medium, factor)
                for part, medium in zip(conversation.media, prepared.media, strict=True)
            ],
            timings_ms=record.timed(),
        )

    async def _refusals(
        self, conversation: Conversation, first: ClientError, record: RequestRecord
    ) -> list[PreviewRefusal]:
        """Look at each medium by itself, so that all that are at fault are told at once.

        first: what the request was refused for, which need not be a medium.
        """
        parts = conversation.media
        if first.code in _JOINT_FAULTS or len(parts) < 2:
            return [_refusal(first)]
        errors = await self._chat.faults_of(parts, record)
        if first.param not in [error.param for error in errors]:
            errors.insert(0, first)
        return [_refusal(error) for error in errors]

    def _spell(self, prepared: Prepared) -> str:
        """Write the prompt as text, each run of visual tokens as one and its length."""
        visual_ids = (self._chat.model.image_token_id, self._chat.model.video_token_id)
        spell = prepared.vocabulary.spell_all
        pieces: list[str] = []
        for visual_id, run in groupby(
            prepared.prompt.token_ids, lambda token_id: token_id if token_id in visual_ids else None
        ):
            token_ids = list(run)
            pieces.append(
                spell(token_ids) if visual_id is None else f"{spell([visual_id])}×{len(token_ids)}"
            )
        return "".join(pieces)


def _has_messages(body: bytes) -> bool:
    try:
        return _probe_decoder.decode(body).messages is not msgspec.UNSET
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False  # whichever dialect reads it says what is wrong


def _seen(param: str, medium: Medium, factor: int) -> SeenMedium:
    match medium:
        case Document(num_pages=num_pages, pages=pages):
            images = [_seen_image(page.image, factor, page.number) for page in pages]
            return SeenMedium(param=param, kind="document", num_pages=num_pages, images=images)
        case SampledVideo():
            return SeenMedium(param=param, kind="video", images=[_seen_video(medium, factor)])
        case _:
            return SeenMedium(param=param, kind="image", images=[_seen_image(medium, factor)])


def _seen_image(image: DecodedImage, factor: int, page: int | None = None) -> SeenImage:
    return SeenImage(
        format=image.source_format,
        page=page,
        source_width=image.source_width,
        source_height=image.source_height,
        width=image.width,
        height=image.height,
        tokens=(image.width // factor) * (image.height // factor),
        notes=list(image.notes),
        hash=image.content_hash.hex(),
    )


def _seen_video(video: SampledVideo, factor: int) -> SeenImage:
    per_frame = (video.width // factor) * (video.height // factor)
    return SeenImage(
        format=video.source_format,
        source_width=video.source_width,
        source_height=video.source_height,
        width=video.width,
        height=video.height,
        num_frames=video.num_frames,
        timestamps=list(video.timestamps),
        tokens=per_frame * len(video.timestamps),
        hash=video.content_hash.hex(),
    )


def _refusal(error: ClientError) -> PreviewRefusal:
    return PreviewRefusal(
        status=error.status, code=error.code, message=error.message, param=error.param
    )
