"""What the API document says of the preview."""

from service.openapi import SERVER_TIMING_HEADER, Content, Operation, Reply
from service.routes.native_docs import NATIVE_FORMS
from service.routes.native_schema import ChatRequest
from service.routes.openai_docs import BODY_ERRORS, NOTHING_NAMED, SERVICE_FAILURES
from service.routes.openai_schema import CompletionRequest
from service.routes.preview import Preview

PREVIEW_OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/preview",
        summary="Tell what the model would see of a request",
        description="Takes the body of any request for an answer, in either dialect, and goes with "
        "it all the way to the model, but not into it: sizes, tokens, pages, colours, and the "
        "prompt. What would be refused is told in `refusals`, every medium at fault by itself. A "
        "body that is no request, such as one with an unknown field or another model, is an error "
        "here as it is there; of an output schema only its size and its references are looked at. "
        "`stream` makes no difference.",
        body=(Content("application/json", (ChatRequest, CompletionRequest)), *NATIVE_FORMS),
        replies={
            200: Reply(
                "What would reach the model.",
                (Content("application/json", Preview),),
                SERVER_TIMING_HEADER,
            ),
            **BODY_ERRORS,
            **NOTHING_NAMED,
            **SERVICE_FAILURES,
        },
        tag="openai",
    ),
)
