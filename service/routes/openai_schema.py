"""The OpenAI dialect's JSON as clients send it; extensions have the names other servers gave them.

What a field that is not here means, is `service.routes.openai_fields`'s to say.
"""

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta

from service.http.deadline import DeadlineMs
from service.routes.openai_message_schema import (
    MAX_MESSAGES,
    MAX_PIXELS,
    MIN_PIXELS,
    Area,
    ChatMessage,
    Name,
    RequestObject,
    Sized,
    Text,
)

MAX_ANSWERS = 8
MAX_TOKENS = 1_000_000

TokenCount: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)]
StopString: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]


class FunctionDefinition(RequestObject, frozen=True, kw_only=True):
    """A function the answer may call."""

    name: Name
    description: Text = None
    parameters: Annotated[
        dict[str, Any] | None, Meta(description="JSON schema of its arguments.")
    ] = None
    strict: Annotated[bool | None, Meta(description="Constrain the arguments to the schema.")] = (
        None
    )


class Tool(RequestObject, frozen=True, kw_only=True):
    """Something the answer may call."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionReference(RequestObject, frozen=True, kw_only=True):
    """One of the functions, by name."""

    name: Name


class NamedToolChoice(RequestObject, frozen=True, kw_only=True):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionReference


class TextFormat(RequestObject, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Any text."""


class JsonObjectFormat(
    RequestObject, frozen=True, kw_only=True, tag_field="type", tag="json_object"
):
    """Any JSON object."""


class JsonSchema(RequestObject, frozen=True, kw_only=True):
    """A named schema."""

    name: Name
    description: Text = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class JsonSchemaFormat(
    RequestObject, frozen=True, kw_only=True, tag_field="type", tag="json_schema"
):
    """JSON of a schema; the answer always keeps to it, `strict` or not."""

    json_schema: JsonSchema


class StreamOptions(RequestObject, frozen=True, kw_only=True):
    """What a stream tells besides the answer."""

    include_usage: Annotated[
        bool | None, Meta(description="Count tokens in one more chunk, at the end.")
    ] = None
    include_obfuscation: Annotated[bool | None, Meta(description="Ignored.")] = None


class CompletionRequest(RequestObject, frozen=True, kw_only=True):
    """A conversation to go on with, and how."""

    model: Annotated[str, Meta(description="The served model's name, as `/v1/models` tells it.")]
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[
        TokenCount | None,
        Meta(description="Most tokens to generate. Absent: what the context has room for."),
    ] = None
    max_tokens: Annotated[TokenCount | None, Meta(description="The older name of the same.")] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None,
        Meta(description="0 takes the likeliest token. Absent: the checkpoint's own default."),
    ] = None
    top_p: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        Meta(description="Absent: the checkpoint's own default."),
    ] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=-1, le=1_000_000)] | None,
        Meta(description="0 and -1 are off. Absent: the checkpoint's own default."),
    ] = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[
        Annotated[float, Meta(ge=0.1, le=2)] | None,
        Meta(description="Over prompt and answer; 1 is off. Absent: the checkpoint's own default."),
    ] = None
    logit_bias: Annotated[
        Annotated[dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=300)]
        | None,
        Meta(description="Added to the logits of these token ids."),
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None,
        Meta(description="Makes the answer repeatable."),
    ] = None
    stop: Annotated[
        StopString | Annotated[list[StopString], Meta(max_length=16)] | None,
        Meta(description="Strings that end the answer; they are not part of it."),
    ] = None
    deadline_ms: DeadlineMs = None
    stop_token_ids: Annotated[
        Annotated[list[TokenId], Meta(max_length=64)] | None,
        Meta(description="Tokens that end the answer."),
    ] = None
    min_tokens: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None,
        Meta(description="No end token before so many."),
    ] = None
    ignore_eos: Annotated[
        bool | None, Meta(description="Go on behind the end token, to the token limit.")
    ] = None
    repetition_detection: Annotated[
        bool | None,
        Meta(description="End an answer that only repeats itself; on unless false."),
    ] = None
    n: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_ANSWERS)] | None, Meta(description="Answers.")
    ] = None
    logprobs: Annotated[bool | None, Meta(description="Tell every token's log probability.")] = None
    top_logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=20)] | None,
        Meta(description="And those of so many likeliest tokens; needs `logprobs`."),
    ] = None
    stream: Annotated[bool | None, Meta(description="Answer with server-sent events.")] = None
    stream_options: StreamOptions | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | NamedToolChoice | None,
        Meta(description="Absent: `auto` with tools."),
    ] = None
    parallel_tool_calls: Annotated[bool | None, Meta(description="False: at most one call.")] = None
    min_pixels: Annotated[
        Area | None, Meta(description=MIN_PIXELS + " For parts that do not say.")
    ] = None
    max_pixels: Annotated[
        Area | None, Meta(description=MAX_PIXELS + " For parts that do not say.")
    ] = None
    modalities: list[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    metadata: Annotated[dict[str, Any] | None, Meta(description="Ignored.")] = None
    prompt_cache_key: Annotated[Text, Meta(description="Ignored.")] = None
    prompt_cache_retention: Annotated[Text, Meta(description="Ignored.")] = None
    safety_identifier: Annotated[Text, Meta(description="Ignored.")] = None
    store: Annotated[bool | None, Meta(description="Ignored: nothing is kept.")] = None
    user: Annotated[Text, Meta(description="Ignored.")] = None


class TokenizeRequest(Sized, frozen=True, kw_only=True):
    """A text, or messages as for an answer, to be counted."""

    model: Text = None
    prompt: Annotated[
        Annotated[str, Meta(max_length=MAX_TOKENS)] | None,
        Meta(description="Plain text; spelt special tokens stay text."),
    ] = None
    messages: Annotated[
        Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)] | None,
        Meta(description="Rendered with the chat template, pictures included."),
    ] = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None


class DetokenizeRequest(RequestObject, frozen=True, kw_only=True):
    """Tokens to be spelt."""

    model: Text = None
    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKENS)]
