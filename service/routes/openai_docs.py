"""What the API document says of the OpenAI dialect's paths."""

from service.http.error_reply import PROBLEM_MEDIA_TYPE, ErrorEnvelope, Problem
from service.openapi import EVENT_STREAM, SERVER_TIMING_HEADER, Content, Operation, Reply, Schema
from service.routes.openai_reply import (
    Completion,
    CompletionChunk,
    Detokenized,
    Model,
    ModelList,
    Tokenized,
)
from service.routes.openai_schema import (
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)

_TAG = "openai"
_ERROR = (Content("application/json", ErrorEnvelope), Content(PROBLEM_MEDIA_TYPE, Problem))
_IGNORED_HEADER: dict[str, Schema] = {
    "x-ignored-params": {
        "description": "Fields that were taken and have no effect; absent when there are none.",
        "schema": {"type": "string"},
    }
}
_STARTING = {503: Reply("No engine was ready yet.", _ERROR)}
_NOT_FOUND = {404: Reply("No model of this name is served.", _ERROR)}
NOTHING_NAMED = {404: Reply("There is no such model, or no such file of yours.", _ERROR)}
BODY_ERRORS = {
    400: Reply("A field is missing, unknown, unsupported or out of bounds.", _ERROR),
    408: Reply("The body did not arrive in time.", _ERROR),
    413: Reply("The body or the pictures are too large.", _ERROR),
    415: Reply("The body is not JSON in UTF-8, or compressed.", _ERROR),
}
SERVICE_FAILURES = {
    429: Reply("The key's quota is used up.", _ERROR),
    500: Reply("The service failed.", _ERROR),
    503: Reply("At capacity, starting, restarting, or out of device memory.", _ERROR),
    504: Reply("The request took longer than its deadline.", _ERROR),
}
_TOO_LATE = {
    504: Reply("The answer took longer than its deadline; `usage` is what it took.", _ERROR)
}

OPENAI_OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/chat/completions",
        summary="Go on with a conversation, as the OpenAI API does",
        description="A field that is not listed is refused by name: `param_unsupported` where it "
        "is known elsewhere, `param_not_allowed` where it would let a client decide how the server "
        "works. Null is the same as absent.\n\n"
        "With `stream`, the reply is server-sent events: chunks, with `include_usage` one of the "
        "usage, then `data: [DONE]`. An error after the first event is an event with `error`, "
        "followed by `data: [DONE]`; before it, it is an ordinary reply.",
        body=(Content("application/json", CompletionRequest),),
        replies={
            200: Reply(
                "The answers.",
                (
                    Content("application/json", Completion),
                    Content(EVENT_STREAM, (CompletionChunk, ErrorEnvelope)),
                ),
                dict(SERVER_TIMING_HEADER) | _IGNORED_HEADER,
            )
        }
        | BODY_ERRORS
        | NOTHING_NAMED
        | SERVICE_FAILURES
        | _TOO_LATE,
        tag=_TAG,
    ),
    Operation(
        method="GET",
        path="/v1/models",
        summary="What is served",
        description="One model.",
        replies={200: Reply("The models.", (Content("application/json", ModelList),))} | _STARTING,
        tag=_TAG,
    ),
    Operation(
        method="GET",
        path="/v1/models/{name}",
        summary="Facts of the served model",
        description="By its name; slashes in it stay as they are.",
        replies={200: Reply("The model.", (Content("application/json", Model),))}
        | _NOT_FOUND
        | _STARTING,
        tag=_TAG,
    ),
    Operation(
        method="POST",
        path="/tokenize",
        summary="Count what a prompt costs",
        description="A plain `prompt`, or `messages` as for an answer: pictures are decoded and "
        "counted, nothing reaches the engine.",
        body=(Content("application/json", TokenizeRequest),),
        replies={200: Reply("The tokens.", (Content("application/json", Tokenized),))}
        | BODY_ERRORS
        | NOTHING_NAMED
        | SERVICE_FAILURES,
        tag=_TAG,
    ),
    Operation(
        method="POST",
        path="/detokenize",
        summary="Spell tokens",
        description="Special tokens are spelt, too.",
        body=(Content("application/json", DetokenizeRequest),),
        replies={200: Reply("The text.", (Content("application/json", Detokenized),))}
        | BODY_ERRORS
        | _NOT_FOUND
        | SERVICE_FAILURES,
        tag=_TAG,
    ),
)
