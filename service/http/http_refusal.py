"""What a connection is told before there is a request: whole answers, ready to be written.

Which API was meant is not known yet: they have the native API's and OpenAI's shapes at once.
"""

import secrets
from http import HTTPStatus
from typing import NamedTuple

import msgspec

_ANSWERS = {
    HTTPStatus.BAD_REQUEST: ("http_invalid", "This is not an HTTP/1.1 request."),
    HTTPStatus.REQUEST_TIMEOUT: ("head_timeout", "The request's head took too long to arrive."),
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: (
        "head_too_large",
        "The request's target and headers are too large or too many.",
    ),
    HTTPStatus.SERVICE_UNAVAILABLE: (
        "overloaded",
        "The service is at capacity; try again later.",
    ),
}


class Refusal(NamedTuple):
    """One answer. code: as in the body. answer: the bytes to write, before the connection ends."""

    code: str
    request_id: str
    answer: bytes


def refuse(status: HTTPStatus) -> Refusal:
    """Make the answer for a status."""
    code, message = _ANSWERS[status]
    request_id = secrets.token_hex(16)
    is_ours = status == HTTPStatus.SERVICE_UNAVAILABLE
    kind = "overloaded_error" if is_ours else "invalid_request_error"
    body = msgspec.json.encode(
        {
            "error": {"message": message, "type": kind, "param": None, "code": code},
            "success": False,
            "message": message,
            "result": None,
            "usage": None,
            "code": code,
            "request_id": request_id,
        }
    )
    retry = "retry-after: 1\r\n" if is_ours else ""
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"x-request-id: {request_id}\r\n{retry}connection: close\r\n\r\n"
    )
    return Refusal(code, request_id, head.encode("ascii") + body)
