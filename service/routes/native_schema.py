"""The native dialect's JSON: what a client sends, what it gets back."""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from service.http.deadline import DeadlineMs
from service.stages import StageTimes

IMAGE_ONLY_PROMPT = "请描述这张图片"
DEFAULT_MAX_NEW_TOKENS = 512

InputType: TypeAlias = Literal["text_only", "image_only", "text_image"]
StopString: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question, its pictures, and how to answer."""

    input_type: Annotated[
        InputType,
        Meta(
            description="What the request holds. Text needs `text`; an image needs one of "
            "`image_base64`, `image_url`, `images` and `files`, or a file in a form."
        ),
    ] = "text_image"
    text: Annotated[
        Annotated[str, Meta(max_length=2048)] | None,
        Meta(description=f"The question. `image_only` without one asks “{IMAGE_ONLY_PROMPT}”."),
    ] = None
    system: Annotated[
        Annotated[str, Meta(max_length=2048)] | None,
        Meta(description="Instructions that come before the question."),
    ] = None
    image_url: Annotated[
        str | None,
        Meta(description="A `data:`, http or https URL, or the id of an uploaded file."),
    ] = None
    image_base64: Annotated[
        str | None, Meta(description="The image file in base64; a `data:` prefix is allowed.")
    ] = None
    images: Annotated[
        list[str] | None,
        Meta(description="Several images, in order: base64, URLs or file ids."),
    ] = None
    files: Annotated[
        list[str] | None,
        Meta(description="Documents, videos or images, in order: base64, URLs or file ids."),
    ] = None
    pages: Annotated[
        Annotated[str, Meta(min_length=1, max_length=256)] | None,
        Meta(
            description="Pages of every document in `files`, counted from 1; absent: all.",
            examples=["1-3,7"],
        ),
    ] = None
    min_pixels: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Least area of an image for the model, within the server's bounds."),
    ] = None
    max_pixels: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Largest area of an image for the model, within the server's bounds."),
    ] = None
    max_new_tokens: Annotated[
        Annotated[int, Meta(ge=10, le=2048)] | None,
        Meta(
            description=f"Most tokens to generate. Absent: {DEFAULT_MAX_NEW_TOKENS}, or what the "
            "model's context has room for.",
            extra_json_schema={"examples": [DEFAULT_MAX_NEW_TOKENS]},
        ),
    ] = None
    temperature: Annotated[float, Meta(ge=0.1, le=1.5)] = 0.7
    top_p: Annotated[float, Meta(gt=0, le=1)] = 0.9
    top_k: Annotated[int, Meta(ge=0, le=1_000_000, description="0 is off.")] = 0
    repetition_penalty: Annotated[
        float, Meta(ge=0.1, le=2, description="Over prompt and answer; 1 is off.")
    ] = 1.1
    presence_penalty: Annotated[
        float, Meta(ge=-2, le=2, description="Over the answer; 0 is off.")
    ] = 0.0
    stop: Annotated[
        StopString | Annotated[list[StopString], Meta(max_length=16)] | None,
        Meta(description="Strings that end the answer; they are not part of it."),
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=0, le=2**63 - 1)] | None,
        Meta(description="Makes the answer repeatable."),
    ] = None
    deadline_ms: DeadlineMs = None


class ChatUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer took. input_tokens is text_tokens and image_tokens together."""

    input_tokens: int
    output_tokens: int
    text_tokens: int
    image_tokens: int
    cached_tokens: Annotated[int, Meta(description="Input tokens that were computed before.")]
    document_pages: Annotated[int, Meta(description="Pages of documents that were shown.")]
    inference_time_ms: Annotated[
        float, Meta(description="In the engine, from its taking the request to the last token.")
    ]
    gpu_memory_used_gb: Annotated[float, Meta(description="Of the device, in GiB.")]


class ChatReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer."""

    success: Literal[True] = True
    message: str = "ok"
    result: str
    usage: ChatUsage
    timings_ms: StageTimes
    finish_reason: Annotated[
        str, Meta(description="`stop`: complete; `length`: cut at a token limit.")
    ]
    request_id: str


class SpentUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer took that came too late: computed, not delivered whole."""

    input_tokens: int
    output_tokens: int


class ErrorReply(msgspec.Struct, frozen=True, kw_only=True):
    """Why there is no answer."""

    success: Literal[False] = False
    message: str
    result: None = None
    usage: Annotated[
        SpentUsage | None, Meta(description="With `deadline_exceeded`, once the prompt is known.")
    ] = None
    code: Annotated[str, Meta(description="A stable word; all are listed above.")]
    param: Annotated[str | None, Meta(description="The field at fault.")] = None
    request_id: str


class ChunkEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the answer."""

    chunk: str
    done: Literal[False] = False


class DoneEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The end of an answer."""

    chunk: Literal[""] = ""
    done: Literal[True] = True
    usage: ChatUsage
    timings_ms: StageTimes
    finish_reason: str
    request_id: str


class ErrorEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The end of an answer that failed after it had begun."""

    error: str
    code: str
    done: Literal[True] = True
    usage: Annotated[SpentUsage | None, Meta(description="With `deadline_exceeded`.")] = None
    request_id: str
