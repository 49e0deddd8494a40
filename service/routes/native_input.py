"""From a body of the native dialect, JSON or form, to the canonical request."""

from typing import Any, NamedTuple, TypeAlias

import msgspec
from litestar.types import Receive, Scope

from inference.protocol import SamplingParams
from service.conversation import (
    ALL_KINDS,
    Bytes,
    Conversation,
    Inline,
    MediaPart,
    Message,
    Part,
    Source,
    TextPart,
)
from service.errors import FieldInvalid, ImageRefused, MediaTypeUnsupported, RequestInvalid
from service.http.body import MediaType, media_type, read_whole
from service.http.form import Form, read_multipart, read_urlencoded
from service.http.validation import convert_form, decode_json
from service.media.source import source_of_text, source_of_url
from service.routes.native_schema import (
    DEFAULT_MAX_NEW_TOKENS,
    IMAGE_ONLY_PROMPT,
    ChatRequest,
    InputType,
)

# Form fields that take files: pictures only, or documents and videos as well.
_FILE_FIELDS = ("image", "file")
# A megabyte of nothing but escapes takes 90 ms to read.
_MAX_FORM_BYTES_ON_LOOP = 10_000
_LIST_FIELDS = ("images", "files", "stop")
_UTF_8 = (None, "utf-8", "utf8")

Uploads: TypeAlias = dict[str, list[bytes]]

_decoder = msgspec.json.Decoder(ChatRequest)


class Question(NamedTuple):
    """A canonical request, and what the client says of how it is answered.

    default_max_tokens: that number is left to the service.
    """

    conversation: Conversation
    default_max_tokens: bool
    deadline_ms: int | None = None


class _Input(NamedTuple):
    """A decoded body: its fields, and what came as files, by the form field that brought them."""

    request: ChatRequest
    uploads: Uploads


async def read_question(scope: Scope, receive: Receive, max_body_bytes: int) -> Question:
    """Read a request's body and make it canonical.

    Raises:
        ClientError: with the field at fault.
        ClientGone: the connection closed before the body was complete.
    """
    return _question(await _read_input(scope, receive, max_body_bytes))


def question_of_json(body: bytes) -> Question:
    """Make a JSON body that was read before canonical.

    Raises:
        ClientError: with the field at fault.
    """
    return _question(_from_json(body))


def _question(read: _Input) -> Question:
    request = read.request
    media = _media(request, read.uploads)
    _check_parts(request, has_media=bool(media))
    return Question(
        conversation=_conversation(request, media),
        default_max_tokens=request.max_new_tokens is None,
        deadline_ms=request.deadline_ms,
    )


async def _read_input(scope: Scope, receive: Receive, max_bytes: int) -> _Input:
    body_type = media_type(scope)
    if body_type.name == "multipart/form-data":
        return _from_form(await read_multipart(scope, receive, max_bytes, body_type))
    _check_media_type(body_type)
    if body_type.name == "application/json":
        return await read_whole(scope, receive, max_bytes, _from_json)
    return _from_form(
        await read_whole(scope, receive, max_bytes, read_urlencoded, _MAX_FORM_BYTES_ON_LOOP)
    )


def _from_json(body: bytes) -> _Input:
    return _Input(decode_json(body, _decoder), {})


def _check_media_type(body_type: MediaType) -> None:
    if (
        body_type.name not in ("application/json", "application/x-www-form-urlencoded")
        or (body_type.charset or "utf-8").lower() not in _UTF_8
    ):
        raise MediaTypeUnsupported(
            "media_type_unsupported",
            "Send application/json in UTF-8, multipart/form-data or "
            "application/x-www-form-urlencoded.",
        )


def _from_form(form: Form) -> _Input:
    """Read a form's fields as the JSON body's; blank ones are absent.

    A page cannot know what its user will fill in, so an absent input_type is taken from what came.
    """
    for name in _FILE_FIELDS:
        if name in form.fields:
            raise RequestInvalid(
                "multipart_invalid", "A file must be sent as a file, with a name.", param=name
            )
    for name in form.files:
        if name not in _FILE_FIELDS:
            raise _unknown_file_field(name)
    fields: dict[str, Any] = {}
    for name in form.fields:
        if name in _LIST_FIELDS:
            fields[name] = form.values(name) or None
        elif (value := form.value(name)) is not None:
            fields[name] = value
    if "input_type" not in fields:
        fields["input_type"] = _derive_input_type(fields, has_files=bool(form.files))
    return _Input(convert_form(fields, ChatRequest), form.files)


def _unknown_file_field(name: str) -> FieldInvalid:
    known = name in ChatRequest.__struct_fields__
    return FieldInvalid(
        "type_invalid" if known else "field_unknown",
        "Files are taken in the fields `image` and `file` only.",
        param=name if known else None,
    )


def _derive_input_type(fields: dict[str, Any], *, has_files: bool) -> InputType:
    if not has_files and not any(
        fields.get(name) for name in ("image_url", "image_base64", "images", "files")
    ):
        return "text_only"
    return "text_image" if "text" in fields else "image_only"


def _media(request: ChatRequest, uploads: Uploads) -> list[MediaPart]:
    """Collect what there is to look at from the one field that brings it."""
    brought_by: dict[str, object] = {
        **uploads,
        "image_url": request.image_url,
        "image_base64": request.image_base64,
        "images": request.images,
        "files": request.files,
    }
    fields = [name for name, value in brought_by.items() if value not in (None, [])]
    if len(fields) > 1:
        raise RequestInvalid(
            "field_conflict",
            f"Send images in one field only, not in {' and '.join(fields)}.",
            param=fields[1],
        )
    field = fields[0] if fields else ""
    return [_part(request, source, param) for source, param in _sources(request, uploads, field)]


def _sources(request: ChatRequest, uploads: Uploads, field: str) -> list[tuple[Source, str]]:
    match field:
        case "image_url":
            return [(source_of_url(request.image_url or "", field), field)]
        case "image_base64":
            return [(Inline(request.image_base64 or ""), field)]
        case "images" | "files":
            texts: list[str] = getattr(request, field)
            named = [(text, f"{field}[{place}]") for place, text in enumerate(texts)]
            return [(source_of_text(text, param), param) for text, param in named]
        case _:
            return [(Bytes(content), field) for content in uploads.get(field, [])]


def _part(request: ChatRequest, source: Source, param: str) -> MediaPart:
    return MediaPart(
        source=source,
        param=param,
        kinds=ALL_KINDS if param.startswith("file") else ("image",),
        min_pixels=request.min_pixels,
        max_pixels=request.max_pixels,
        pages=request.pages,
    )


def _check_parts(request: ChatRequest, *, has_media: bool) -> None:
    if request.input_type == "text_only":
        if has_media:
            raise RequestInvalid(
                "field_conflict", "A text_only request takes no image.", param="input_type"
            )
        if request.pages is not None:
            raise RequestInvalid(
                "field_conflict", "A text_only request has no pages.", param="pages"
            )
    elif not has_media:
        raise ImageRefused(
            "image_missing",
            f"A request of type {request.input_type} needs an image.",
            param="image_base64",
        )
    if request.input_type != "image_only" and not request.text:
        raise FieldInvalid(
            "field_missing", f"A request of type {request.input_type} needs text.", param="text"
        )


def _conversation(request: ChatRequest, media: list[MediaPart]) -> Conversation:
    question: tuple[Part, ...] = (*media, TextPart(request.text or IMAGE_ONLY_PROMPT))
    system = (Message("system", (TextPart(request.system),)),) if request.system else ()
    stop = request.stop or ()
    return Conversation(
        messages=(*system, Message("user", question)),
        sampling=SamplingParams(
            max_tokens=request.max_new_tokens or DEFAULT_MAX_NEW_TOKENS,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            repetition_penalty=request.repetition_penalty,
            presence_penalty=request.presence_penalty,
            seed=request.seed,
        ),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )
