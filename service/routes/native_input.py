"""From a body of the native dialect, JSON or form, to the canonical request."""

from typing import Any, NamedTuple

import anyio.to_thread
import msgspec
from litestar.types import Receive, Scope

from inference.protocol import SamplingParams
from service.body import MediaType, media_type, read_body
from service.conversation import Conversation, ImagePart, Message, Part, TextPart
from service.errors import FieldInvalid, ImageRefused, MediaTypeUnsupported, RequestInvalid
from service.form import Form, MultipartReader, read_urlencoded
from service.media.budget import MediaBudget, MediaLimits
from service.media.inline import decode_inline
from service.routes.native_schema import (
    DEFAULT_MAX_NEW_TOKENS,
    IMAGE_ONLY_PROMPT,
    ChatRequest,
    InputType,
)
from service.validation import convert_form, decode_json

# A megabyte of base64 takes a millisecond to decode; more does not belong on the event loop.
_MAX_CHARACTERS_ON_LOOP = 1_000_000
_FILE_FIELD = "image"
_LIST_FIELDS = ("images", "stop")
_UTF_8 = (None, "utf-8", "utf8")

_decoder = msgspec.json.Decoder(ChatRequest)


class Question(NamedTuple):
    """A canonical request; default_max_tokens: the client left that number to the service."""

    conversation: Conversation
    default_max_tokens: bool


class _Input(NamedTuple):
    """A decoded body: its fields, and the pictures that came as files."""

    request: ChatRequest
    files: list[bytes]


async def read_question(
    scope: Scope, receive: Receive, max_body_bytes: int, media_limits: MediaLimits
) -> Question:
    """Read a request's body and make it canonical.

    Raises:
        ClientError: with the field at fault.
        ClientGone: the connection closed before the body was complete.
    """
    request, files = await _read_input(scope, receive, max_body_bytes)
    pictures = await _pictures(request, files, media_limits)
    _check_parts(request, has_pictures=bool(pictures))
    return Question(
        conversation=_conversation(request, pictures),
        default_max_tokens=request.max_new_tokens is None,
    )


async def _read_input(scope: Scope, receive: Receive, max_bytes: int) -> _Input:
    body_type = media_type(scope)
    if body_type.name == "multipart/form-data":
        reader = MultipartReader(body_type)
        await read_body(scope, receive, max_bytes, reader.feed)
        return _from_form(reader.finish())
    _check_media_type(body_type)
    chunks: list[bytes] = []
    await read_body(scope, receive, max_bytes, chunks.append)
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    if body_type.name == "application/json":
        return _Input(decode_json(body, _decoder), [])
    return _from_form(read_urlencoded(body))


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
    if _FILE_FIELD in form.fields:
        raise RequestInvalid(
            "multipart_invalid", "An image must be sent as a file, with a name.", param=_FILE_FIELD
        )
    files = form.files.pop(_FILE_FIELD, [])
    for name in form.files:
        raise _unknown_file_field(name)
    fields: dict[str, Any] = {}
    for name in form.fields:
        if name in _LIST_FIELDS:
            fields[name] = form.values(name) or None
        elif (value := form.value(name)) is not None:
            fields[name] = value
    if "input_type" not in fields:
        fields["input_type"] = _derive_input_type(fields, has_files=bool(files))
    return _Input(convert_form(fields, ChatRequest), files)


def _unknown_file_field(name: str) -> FieldInvalid:
    known = name in ChatRequest.__struct_fields__
    return FieldInvalid(
        "type_invalid" if known else "field_unknown",
        "Files are taken in the field `image` only.",
        param=name if known else None,
    )


def _derive_input_type(fields: dict[str, Any], *, has_files: bool) -> InputType:
    if not has_files and not any(
        fields.get(name) for name in ("image_url", "image_base64", "images")
    ):
        return "text_only"
    return "text_image" if "text" in fields else "image_only"


async def _pictures(
    request: ChatRequest, files: list[bytes], limits: MediaLimits
) -> list[ImagePart]:
    """Collect the pictures from the one field that brings them."""
    brought_by = {
        _FILE_FIELD: files,
        "image_url": request.image_url,
        "image_base64": request.image_base64,
        "images": request.images,
    }
    fields = [name for name, value in brought_by.items() if value not in (None, [])]
    if len(fields) > 1:
        raise RequestInvalid(
            "field_conflict",
            f"Send images in one field only, not in {' and '.join(fields)}.",
            param=fields[1],
        )
    if files:
        return [ImagePart(content, _FILE_FIELD) for content in files]
    if request.image_url is not None:
        return await _decode_texts([(_data_url(request.image_url), "image_url")], limits)
    if request.image_base64 is not None:
        return await _decode_texts([(request.image_base64, "image_base64")], limits)
    return await _decode_texts(
        [(text, f"images[{place}]") for place, text in enumerate(request.images or [])], limits
    )


async def _decode_texts(texts: list[tuple[str, str]], limits: MediaLimits) -> list[ImagePart]:
    budget = MediaBudget(limits)
    for _, param in texts:
        budget.take_image(param)

    def decode() -> list[ImagePart]:
        pictures: list[ImagePart] = []
        for text, param in texts:
            encoded = decode_inline(text, param, limits)
            budget.take_bytes(len(encoded), param)
            pictures.append(ImagePart(encoded, param))
        return pictures

    if sum(len(text) for text, _ in texts) <= _MAX_CHARACTERS_ON_LOOP:
        return decode()
    return await anyio.to_thread.run_sync(decode)


def _data_url(url: str) -> str:
    """Pass a data URL on; every other scheme is refused by name."""
    scheme, colon, _ = url.partition(":")
    match scheme.lower() if colon else "":
        case "data":
            return url
        case "http" | "https":
            raise ImageRefused(
                "image_url_unsupported",
                "Remote URLs are not fetched; send the image itself, in image_base64.",
                param="image_url",
            )
        case "":
            raise ImageRefused(
                "image_url_invalid", "This is no URL; send a data: URL.", param="image_url"
            )
        case _:
            raise ImageRefused("image_url_scheme", "Only data: URLs are taken.", param="image_url")


def _check_parts(request: ChatRequest, *, has_pictures: bool) -> None:
    if request.input_type == "text_only":
        if has_pictures:
            raise RequestInvalid(
                "field_conflict", "A text_only request takes no image.", param="input_type"
            )
    elif not has_pictures:
        raise ImageRefused(
            "image_missing",
            f"A request of type {request.input_type} needs an image.",
            param="image_base64",
        )
    if request.input_type != "image_only" and not request.text:
        raise FieldInvalid(
            "field_missing", f"A request of type {request.input_type} needs text.", param="text"
        )


def _conversation(request: ChatRequest, pictures: list[ImagePart]) -> Conversation:
    question: tuple[Part, ...] = (*pictures, TextPart(request.text or IMAGE_ONLY_PROMPT))
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
