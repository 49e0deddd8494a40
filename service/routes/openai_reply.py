"""The OpenAI dialect's JSON as clients get it."""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]

_STOP_REASON = Meta(
    description="The stop string that ended the answer, or `repetition` when it only repeated "
    "itself."
)


class PromptTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Of the prompt's tokens."""

    cached_tokens: Annotated[int, Meta(description="Computed before.")]
    text_tokens: int
    image_tokens: int


class CompletionTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Of the answers' tokens."""

    reasoning_tokens: Annotated[int, Meta(description="Within `reasoning_content`.")]


class CompletionUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What the answers took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    document_pages: Annotated[int, Meta(description="Pages of documents that were shown.")]


class TopLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A token that could have been."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A token of the answer."""

    token: str
    logprob: float
    bytes: Annotated[list[int], Meta(description="A token may be a part of a character.")]
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Every token of the answer, reasoning and calls included."""

    content: list[ContentLogprob]
    refusal: None = None


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """A function and its arguments, as JSON text that the model wrote."""

    name: str
    arguments: str


class MessageToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call the client is to make."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class CompletionMessage(msgspec.Struct, frozen=True, kw_only=True):
    """An answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[MessageToolCall] | UnsetType = UNSET


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One of the answers."""

    index: int
    message: CompletionMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason
    stop_reason: Annotated[str | None, _STOP_REASON] = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The answers."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: CompletionUsage


class DeltaFunction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of a call: its name first, then its arguments bit by bit."""

    name: str | None = None
    arguments: str | None = None


class DeltaToolCall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of the call of this index."""

    index: int
    id: str | None = None
    type: str | None = None
    function: DeltaFunction


class ChoiceDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of an answer."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[DeltaToolCall] | None = None


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the answer of this index."""

    index: int
    delta: ChoiceDelta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: Annotated[str | UnsetType | None, _STOP_REASON] = UNSET


class CompletionChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event. Every answer's first has its role, its last a finish reason."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Annotated[
        CompletionUsage | UnsetType | None,
        Meta(description="With `include_usage`: null, but in the last chunk, which has no choice."),
    ] = UNSET


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be asked for."""

    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Meta(description="When its files were written, Unix seconds.")]
    owned_by: str = "loupe"
    max_model_len: Annotated[int, Meta(description="Prompt and answer together, in tokens.")]


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All models that can be asked for: one."""

    object: Literal["list"] = "list"
    data: list[Model]


class Tokenized(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt as the model sees it."""

    tokens: list[int]
    count: int
    max_model_len: int
    image_tokens: Annotated[int, Meta(description="Of `count`.")]


class Detokenized(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens' text, special ones included."""

    prompt: str
