"""What becomes of fields that the OpenAI family of APIs has and this service does not honour.

Nothing is dropped in silence: a field is refused by name, or it changes no answer and is listed in
the header `x-ignored-params`.
"""

import re
from typing import TypeVar

import msgspec

from service.errors import FieldInvalid, RequestInvalid
from service.http.validation import decode_json
from service.routes.openai_schema import CompletionRequest

# Taken because clients send them unasked; what they say has no bearing on an answer here.
_IGNORED = (
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "store",
    "user",
)
# The same within messages: what earlier answers held besides their text, and who is who.
_IGNORED_IN_MESSAGES = ("annotations", "name", "parsed")
# Known elsewhere, not done here. Without a value they ask for nothing and are taken.
_UNSUPPORTED = frozenset({
    "add_generation_prompt", "add_special_tokens", "allowed_token_ids", "audio", "bad_words",
    "best_of", "cache_salt", "continue_final_message", "documents", "echo", "enable_thinking",
    "function_call", "functions", "guided_choice", "guided_grammar", "guided_json",
    "guided_regex", "include_reasoning", "include_stop_str_in_output", "length_penalty",
    "lora_path", "moderation", "prediction", "priority", "prompt_cache_options",
    "prompt_logprobs", "reasoning", "reasoning_effort", "response_schema", "return_token_ids",
    "return_tokens_as_token_ids", "skip_special_tokens", "spaces_between_special_tokens",
    "stop_regex", "structured_outputs", "suffix", "thinking", "truncate_prompt_tokens",
    "use_beam_search", "verbosity", "web_search_options",
})  # fmt: skip
# They would let a client decide how the server works.
_NOT_ALLOWED = frozenset({
    "chat_template", "chat_template_kwargs", "custom_logit_processor", "kv_transfer_params",
    "logits_processors", "media_io_kwargs", "mm_processor_kwargs", "processor_kwargs", "rid",
    "request_id", "vllm_xargs",
})  # fmt: skip
# Fields of which only the value that changes nothing is taken.
_FIXED = ("modalities", "service_tier")
_FIXED_IN_MESSAGES = re.compile(r"messages\[\d+\]\.(?:audio|function_call)")
_ROLE = re.compile(r"messages\[\d+\]\.role")

Request = TypeVar("Request", bound=msgspec.Struct)


def decode_request(body: bytes | bytearray, decoder: msgspec.json.Decoder[Request]) -> Request:
    """Decode a body of this dialect.

    Raises:
        RequestInvalid: not JSON, not this schema, or with a field that is not honoured here.
    """
    try:
        return decode_json(body, decoder)
    except FieldInvalid as fault:
        if fault.code != "field_unknown":
            raise _explained(fault) from None
    try:
        return decode_json(_without_empty_fields(body), decoder)
    except FieldInvalid as fault:
        raise _explained(fault) from None


def ignored_headers(request: CompletionRequest) -> dict[str, str]:
    """Name the request's fields that were ignored in a header of the reply."""
    ignored = [name for name in _IGNORED if getattr(request, name) is not None]
    ignored += [
        f"messages.{name}"
        for name in _IGNORED_IN_MESSAGES
        if any(getattr(message, name, None) is not None for message in request.messages)
    ]
    return {"x-ignored-params": ", ".join(ignored)} if ignored else {}


def _without_empty_fields(body: bytes | bytearray) -> bytes:
    """Drop known but unsupported fields that hold null: some clients send every field there is."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return bytes(body)
    return msgspec.json.encode(
        {
            name: content
            for name, content in fields.items()
            if name not in _UNSUPPORTED | _NOT_ALLOWED or bytes(content) != b"null"
        }
    )


def _explained(fault: FieldInvalid) -> RequestInvalid:
    """Say of a known field why it is not taken."""
    param = fault.param or ""
    if fault.code == "field_unknown" and param in _NOT_ALLOWED:
        return RequestInvalid(
            "param_not_allowed", "Clients may not set this parameter.", param=param
        )
    is_fixed = re.split(r"[.\[]", param, maxsplit=1)[0] in _FIXED or (
        fault.code == "type_invalid" and _FIXED_IN_MESSAGES.fullmatch(param)
    )
    if is_fixed or (fault.code == "field_unknown" and param in _UNSUPPORTED):
        return RequestInvalid(
            "param_unsupported", "This parameter, or its value, is not supported.", param=param
        )
    if fault.code != "field_missing" and (param == "messages" or _ROLE.fullmatch(param)):
        return RequestInvalid("messages_invalid", fault.message, param=param)
    return fault
