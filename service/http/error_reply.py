"""One error, told in the shape of whoever asks: which envelope, which status, which headers.

An envelope is a dialect's own; here is the choice between them, the two that belong to no dialect
of ours (OpenAI's, which is the rule, and RFC 9457's, for who accepts it), and what all have in
common: whether and when to try again.
"""

import math
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Annotated, Literal, NamedTuple, TypeAlias

import msgspec
from litestar import Response
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.types import Scope
from msgspec import UNSET, Meta, UnsetType

from service.errors import (
    DeadlineExceeded,
    FieldInvalid,
    InternalError,
    MethodNotAllowed,
    NotFound,
    RequestInvalid,
    ServerError,
    ServiceError,
    Unauthenticated,
)
from service.request_log import record_of

PROBLEM_MEDIA_TYPE = "application/problem+json"

_DEFAULT_RETRY_SECONDS = 1.0
_STATUSES_TO_RETRY = (429, 503)

_encoder = msgspec.json.Encoder()


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong."""

    message: str
    type: Annotated[str, Meta(description="The kind of error, such as `invalid_request_error`.")]
    param: Annotated[
        str | None,
        Meta(description="The field at fault, such as `messages[0].content[1].image_url.url`."),
    ] = None
    code: Annotated[str, Meta(description="A stable word; all are listed above.")]


class SpentTokens(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer took that came too late: computed, not delivered whole."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


MaybeSpent: TypeAlias = Annotated[
    SpentTokens | UnsetType,
    Meta(description="With `deadline_exceeded`, once the prompt is known; else absent."),
]


class ErrorEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """Why there is no answer, as the OpenAI API tells it; `usage` is ours, in its words."""

    error: ErrorDetail
    usage: MaybeSpent = UNSET


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why there is no answer, as RFC 9457 tells it."""

    type: Literal["about:blank"] = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    param: str | None = None
    usage: MaybeSpent = UNSET
    request_id: str


class Envelope(NamedTuple):
    """How one dialect tells errors.

    render: the body, from an error and the request's id. schema_fault_status: of well-formed input
    that does not fit the schema.
    """

    render: Callable[[ServiceError, str], bytes]
    schema_fault_status: int = 400


class ErrorReplies:
    """Answers with errors, on any path.

    paths: the envelopes of the paths that have one of their own; all others get OpenAI's.
    """

    def __init__(self, paths: Mapping[str, Envelope]) -> None:
        self._paths = paths

    def reply(self, scope: Scope, error: ServiceError) -> Response[bytes]:
        """Make the response, and note the error in the request's log line."""
        record = record_of(scope)
        record.note_error(error)
        envelope = self._paths.get(scope["path"].rstrip("/"), OPENAI_ENVELOPE)
        is_schema_fault = isinstance(error, FieldInvalid)
        status = envelope.schema_fault_status if is_schema_fault else error.status
        wants_problem = _accepts_problem(scope)
        return Response(
            _problem(error, status, record.request_id)
            if wants_problem
            else envelope.render(error, record.request_id),
            status_code=status,
            headers=reply_headers(error),
            media_type=PROBLEM_MEDIA_TYPE if wants_problem else "application/json",
        )


def error_envelope(error: ServiceError) -> ErrorEnvelope:
    """Put an error into OpenAI's envelope."""
    return ErrorEnvelope(
        error=ErrorDetail(
            message=error.message, type=error.type, param=error.param, code=error.code
        ),
        usage=_spent(error),
    )


def reply_headers(error: ServiceError) -> dict[str, str]:
    """Say whether and when the same request is worth another try.

    `retry-after-ms` and `x-should-retry` are read by the clients of the OpenAI API family, which
    would otherwise repeat some errors that stay, and wait whole seconds for others.
    """
    if not error.may_retry:
        headers = {"x-should-retry": "false"}
        if error.code in ("body_too_large", "body_timeout"):
            headers["connection"] = "close"  # what is still on its way is not worth reading
        if isinstance(error, Unauthenticated):
            headers["www-authenticate"] = 'Bearer realm="loupe"'
        return headers
    headers = {"x-should-retry": "true"}
    if isinstance(error, ServerError) and error.status in _STATUSES_TO_RETRY:
        seconds = error.retry_after_seconds or _DEFAULT_RETRY_SECONDS
        headers["retry-after"] = str(max(1, math.ceil(seconds)))
        headers["retry-after-ms"] = str(max(1, math.ceil(seconds * 1000)))
    return headers


def from_framework(error: HTTPException) -> ServiceError:
    """Translate an error of the framework; its text may hold parts of the input and is dropped."""
    if isinstance(error, NotFoundException):
        return NotFound("path_not_found", "There is nothing at this path.")
    if isinstance(error, MethodNotAllowedException):
        return MethodNotAllowed()
    if error.status_code < 500:
        return RequestInvalid("request_invalid", "The request is malformed.")
    return InternalError()


def _render_openai(error: ServiceError, _: str) -> bytes:
    return _encoder.encode(error_envelope(error))


OPENAI_ENVELOPE = Envelope(_render_openai)


def _problem(error: ServiceError, status: int, request_id: str) -> bytes:
    problem = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=error.message,
        code=error.code,
        param=error.param,
        usage=_spent(error),
        request_id=request_id,
    )
    return _encoder.encode(problem)


def _spent(error: ServiceError) -> SpentTokens | UnsetType:
    if not isinstance(error, DeadlineExceeded) or error.spent is None:
        return UNSET
    num_prompt_tokens, num_output_tokens = error.spent
    return SpentTokens(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_output_tokens,
        total_tokens=num_prompt_tokens + num_output_tokens,
    )


def _accepts_problem(scope: Scope) -> bool:
    """Tell whether the client names the media type; `*/*` does not, or every client would."""
    for name, value in scope["headers"]:
        if name == b"accept" and PROBLEM_MEDIA_TYPE.encode() in value.lower():
            return any(map(_is_problem, value.decode("latin-1").lower().split(",")))
    return False


def _is_problem(media_range: str) -> bool:
    media_type, *parameters = (piece.strip() for piece in media_range.split(";"))
    return media_type == PROBLEM_MEDIA_TYPE and not any(
        name.strip() == "q" and _is_zero(value)
        for name, _, value in (parameter.partition("=") for parameter in parameters)
    )


def _is_zero(quality: str) -> bool:
    return quality.strip().rstrip("0") in ("", "0.", ".")
