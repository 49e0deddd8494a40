"""From the OpenAI dialect's request to the canonical one. Knows fields, not bytes or replies."""

from collections.abc import Collection

from inference.protocol import Limits, ModelFacts, SamplingParams
from service.conversation import Conversation
from service.errors import FieldInvalid, NotFound, RequestInvalid
from service.routes.openai_messages import PixelBounds, canonical_messages, canonical_tools
from service.routes.openai_schema import (
    CompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedToolChoice,
    Tool,
)
from service.text.output_format import JSON_OBJECT, Function, NamedChoice, OutputFormat, Schema

# A request that names no limit gets all the room there is; this is beyond every context.
_UNBOUNDED = 2**31 - 1


def check_model(name: str | None, model: ModelFacts) -> None:
    """Refuse a request for another model than the served one.

    Raises:
        NotFound: `model_not_found`.
    """
    if name is not None and name != model.name:
        raise NotFound("model_not_found", "This model is not served here.", param="model")


def check_token_ids(token_ids: Collection[int], param: str, model: ModelFacts) -> None:
    """Refuse ids beyond the vocabulary.

    Raises:
        FieldInvalid: `value_out_of_range`.
    """
    if token_ids and max(token_ids) >= model.vocab_size:
        raise FieldInvalid(
            "value_out_of_range", "The vocabulary has no such token id.", param=param
        )


def check_num_answers(num_answers: int | None, limits: Limits | None) -> None:
    """Refuse more answers than the engine can write side by side.

    Raises:
        FieldInvalid: `value_out_of_range`.
    """
    if limits is not None and (num_answers or 1) > limits.max_num_seqs:
        raise FieldInvalid(
            "value_out_of_range", f"n must be at most {limits.max_num_seqs} here.", param="n"
        )


def names_no_limit(request: CompletionRequest) -> bool:
    """Tell whether the client left the token limit to the service."""
    return request.max_completion_tokens is None and request.max_tokens is None


def conversation_of(request: CompletionRequest, model: ModelFacts) -> Conversation:
    """Make a request canonical.

    Raises:
        ClientError: with the field at fault.
    """
    _check_combinations(request)
    stop = request.stop or ()
    tools = () if request.tool_choice == "none" else request.tools or ()
    return Conversation(
        messages=canonical_messages(
            request.messages, PixelBounds(request.min_pixels, request.max_pixels)
        ),
        sampling=_sampling(request, model),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        num_answers=request.n or 1,
        tools=canonical_tools(tools),
        output=_output(request),
    )


def _output(request: CompletionRequest) -> OutputFormat:
    match request.tool_choice:
        case NamedToolChoice(function=function):
            choice = NamedChoice(function.name)
        case None:
            choice = "auto"
        case named:
            choice = named
    return OutputFormat(
        json=_json(request),
        functions=[_function(tool, place) for place, tool in enumerate(request.tools or ())],
        choice=choice,
        is_parallel=request.parallel_tool_calls is not False,
    )


def _json(request: CompletionRequest) -> Schema | None:
    match request.response_format:
        case JsonSchemaFormat(json_schema=named):
            if named.schema is None:
                return JSON_OBJECT
            return Schema(named.schema, "response_format.json_schema.schema")
        case JsonObjectFormat():
            return JSON_OBJECT
        case _:
            return None


def _function(tool: Tool, place: int) -> Function:
    function = tool.function
    param = f"tools[{place}].function.parameters"
    parameters = None if function.parameters is None else Schema(function.parameters, param)
    return Function(function.name, parameters, is_strict=bool(function.strict))


def _sampling(request: CompletionRequest, model: ModelFacts) -> SamplingParams:
    check_token_ids(request.logit_bias or {}, "logit_bias", model)
    check_token_ids(request.stop_token_ids or (), "stop_token_ids", model)
    top_k = model.top_k if request.top_k is None else request.top_k
    return SamplingParams(
        max_tokens=request.max_completion_tokens or request.max_tokens or _UNBOUNDED,
        temperature=model.temperature if request.temperature is None else request.temperature,
        top_p=model.top_p if request.top_p is None else request.top_p,
        top_k=max(0, top_k),
        min_p=request.min_p or 0.0,
        repetition_penalty=model.repetition_penalty
        if request.repetition_penalty is None
        else request.repetition_penalty,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=request.logit_bias or {},
        seed=request.seed,
        min_tokens=request.min_tokens or 0,
        stop_token_ids=request.stop_token_ids or [],
        ignore_eos=bool(request.ignore_eos),
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        repetition_guard=request.repetition_detection is not False,
    )


def _check_combinations(request: CompletionRequest) -> None:
    both = (request.max_tokens, request.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        raise RequestInvalid(
            "field_conflict",
            "max_tokens and max_completion_tokens are the same limit; they differ.",
            param="max_tokens",
        )
    if request.top_logprobs and not request.logprobs:
        raise RequestInvalid(
            "field_conflict", "top_logprobs needs logprobs to be true.", param="top_logprobs"
        )
    if request.stream_options is not None and not request.stream:
        raise RequestInvalid(
            "field_conflict", "stream_options are for streams.", param="stream_options"
        )
    limit = request.max_completion_tokens or request.max_tokens
    if limit is not None and (request.min_tokens or 0) > limit:
        raise FieldInvalid(
            "value_out_of_range", "min_tokens is above the token limit.", param="min_tokens"
        )
