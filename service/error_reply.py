"""What an error's reply has in common in every dialect: status, headers, and whether to try again.

The bodies differ; each dialect renders its own.
"""

import math

from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException

from service.errors import (
    InternalError,
    MethodNotAllowed,
    NotFound,
    RequestInvalid,
    ServerError,
    ServiceError,
)

_DEFAULT_RETRY_SECONDS = 1.0


def reply_headers(error: ServiceError) -> dict[str, str]:
    """Say whether and when the same request is worth another try.

    `retry-after-ms` and `x-should-retry` are read by the clients of the OpenAI API family, which
    would otherwise repeat some errors that stay, and wait whole seconds for others.
    """
    if not error.may_retry:
        headers = {"x-should-retry": "false"}
        if error.code == "body_too_large":
            headers["connection"] = "close"  # what is still on its way is not worth reading
        return headers
    headers = {"x-should-retry": "true"}
    if isinstance(error, ServerError) and error.status == 503:
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
