"""What the API document says of the native dialect's paths."""

from service.http.error_reply import PROBLEM_MEDIA_TYPE, Problem
from service.openapi import (
    EVENT_STREAM,
    SERVER_TIMING_HEADER,
    Content,
    Operation,
    Reply,
    Schema,
    schema_of_fields,
)
from service.routes.native_schema import (
    ChatReply,
    ChatRequest,
    ChunkEvent,
    DoneEvent,
    ErrorEvent,
    ErrorReply,
)

_ERROR = (Content("application/json", ErrorReply), Content(PROBLEM_MEDIA_TYPE, Problem))
_JSON_OR_FORM = (
    "The body is JSON, or a form with the same fields as text and one or several files in "
    "`image`, or in `file`, which takes PDFs and videos as well; several files are shown in order. "
    "File names and declared types are "
    "ignored. Blank form fields count as absent. A form may leave `input_type` out: it follows "
    "from what else is there. Of a JSON key given twice the last counts."
)
_ERRORS = {
    400: Reply(
        "The body cannot be read, fields exclude each other, a medium cannot be used, or the "
        "request does not fit the model's context.",
        _ERROR,
    ),
    404: Reply("There is no such file of yours, or it has expired.", _ERROR),
    408: Reply("The body did not arrive in time.", _ERROR),
    413: Reply("The body, an image or all images together are too large.", _ERROR),
    415: Reply("The body's media type or encoding is not taken.", _ERROR),
    422: Reply("A field is missing, unknown, of the wrong type or out of bounds.", _ERROR),
    429: Reply("The key's quota is used up.", _ERROR),
    500: Reply("The service failed.", _ERROR),
    503: Reply(
        "At capacity, too busy for the deadline, starting, restarting, or out of device memory.",
        _ERROR,
    ),
    504: Reply("The request took longer than its deadline.", _ERROR),
}


def _form_schema(*, with_files: bool) -> Schema:
    fields = schema_of_fields(ChatRequest)
    properties = dict(fields["properties"])
    input_type = dict(properties["input_type"])
    input_type.pop("default")
    properties["input_type"] = input_type
    if with_files:
        for name, what in (("image", "Image files."), ("file", "Documents, videos or images.")):
            properties[name] = {
                "type": "array",
                "items": {"type": "string", "format": "binary"},
                "description": what,
            }
    return fields | {"title": "ChatForm", "properties": properties}


NATIVE_FORMS = (
    Content("multipart/form-data", _form_schema(with_files=True)),
    Content("application/x-www-form-urlencoded", _form_schema(with_files=False)),
)
_BODY = (Content("application/json", ChatRequest), *NATIVE_FORMS)

NATIVE_OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/chat",
        summary="Ask about images, or just ask",
        description=_JSON_OR_FORM,
        body=_BODY,
        replies={
            200: Reply(
                "The answer.", (Content("application/json", ChatReply),), SERVER_TIMING_HEADER
            )
        }
        | _ERRORS,
    ),
    Operation(
        method="POST",
        path="/v1/chat/stream",
        summary="The same, piece by piece",
        description=_JSON_OR_FORM
        + "\n\nThe reply is a stream of server-sent events, each one line `data: {…}`: any number "
        'of `{"chunk": …, "done": false}`, then exactly one with `"done": true`: usage and finish '
        "reason, or an error. Lines that begin with `:` keep the connection open. An error before "
        "the first event is an ordinary reply with its own status.",
        body=_BODY,
        replies={
            200: Reply(
                "The events.",
                (Content(EVENT_STREAM, (ChunkEvent, DoneEvent, ErrorEvent)),),
                SERVER_TIMING_HEADER,
            )
        }
        | _ERRORS,
    ),
)
