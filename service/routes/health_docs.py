"""What the API document says of the health paths."""

import msgspec

from service.openapi import Content, Operation, Reply
from service.routes.health import Health, Probe


def _operation(
    path: str,
    summary: str,
    description: str,
    replies: dict[int, str],
    shape: type[msgspec.Struct] = Probe,
) -> Operation:
    """Describe a path that answers in one shape, whatever its status."""
    contents = (Content("application/json", shape),)
    return Operation(
        method="GET",
        path=path,
        summary=summary,
        description=description,
        replies={status: Reply(text, contents) for status, text in replies.items()},
        tag="health",
    )


HEALTH_OPERATIONS = (
    _operation(
        "/v1/health",
        "How this worker is",
        "503 says that no request would be answered now: `loading` until the engine was ready "
        "once, `unavailable` when it was lost, `stopping` at the end; the body has the same shape.",
        {200: "Ready.", 503: "Not ready."},
        Health,
    ),
    _operation(
        "/health/live",
        "Liveness",
        "Answers as long as the worker's event loop turns.",
        {200: "Alive."},
    ),
    _operation(
        "/health/ready",
        "Readiness",
        "Says whether to send requests here.",
        {200: "Ready.", 503: "Not ready."},
    ),
    _operation(
        "/health/startup",
        "Startup",
        "503 until this worker was ready for the first time, 200 ever after.",
        {200: "Started.", 503: "Starting."},
    ),
    _operation(
        "/health/deep",
        "Generates one token",
        "Goes through everything that a request goes through, for at most 10 s. One at a time in "
        "each worker, and good for a second, so that asking often costs little. On failure "
        "`status` is an error code.",
        {200: "A token came.", 503: "None came."},
    ),
)
