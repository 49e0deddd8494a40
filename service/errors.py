"""The exception tree of the web side and its one table to status, type and code.

ServiceError
├── ClientError            the request must change before it can succeed
│   ├── RequestInvalid         400  malformed or out of bounds; `param` names the field
│   │   ├── FieldInvalid            well-formed, but not this schema; 422 where the contract says so
│   │   └── ContextLengthExceeded
│   ├── Unauthenticated        401  no API key, or none that is known
│   ├── PermissionDenied       403  a key that is not allowed this
│   ├── ImageRefused           400  a picture, document or video that cannot be used
│   │   └── ImageFetchTimeout       the one that may succeed when sent again
│   ├── TooLarge               413  over a size budget
│   ├── NotFound               404
│   ├── MethodNotAllowed       405
│   ├── BodyTimeout            408
│   └── MediaTypeUnsupported   415
└── ServerError            the same request may succeed later
    ├── RateLimited            429  over the key's own quota
    ├── Overloaded             503  with the seconds after which to try again
    ├── DeadlineUnreachable    503  refused at once: it could not be answered in time
    ├── EngineUnavailable      503  starting, restarting or lost
    ├── StorageFull            503  no room for another file
    ├── OutOfMemory            503
    ├── DeadlineExceeded       504
    └── InternalError          500

Messages are ours and safe to show; nothing of the input, a path or a library's text is in them.
"""

from typing import ClassVar, NamedTuple


class ServiceError(Exception):
    """Any error with a defined answer.

    code: a stable word a program can test. param: the request field at fault, as a path such as
    `messages[0].content[1].image_url.url`, or None. may_retry: the same request may succeed later.
    """

    status: ClassVar[int]
    type: ClassVar[str]
    may_retry: ClassVar[bool]

    def __init__(self, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


class ClientError(ServiceError):
    """The request must change before it can succeed."""

    type = "invalid_request_error"
    may_retry = False


class RequestInvalid(ClientError):
    """A field is malformed, missing, unknown or out of bounds."""

    status = 400


class FieldInvalid(RequestInvalid):
    """Well-formed input that does not fit the schema: a wrong type, bound, name or combination."""


class ContextLengthExceeded(RequestInvalid):
    """The prompt and the tokens asked for do not fit the model's context."""

    def __init__(self, *, needed: int, allowed: int, is_least: bool = False) -> None:
        """is_least: it needs more, and nobody counted how many."""
        least = "at least " if is_least else ""
        super().__init__(
            "context_length_exceeded",
            f"The request needs {least}{needed} tokens; this model takes {allowed}.",
        )
        self.needed = needed
        self.allowed = allowed


class Unauthenticated(ClientError):
    """There is no API key, or none that is known here."""

    status = 401
    type = "authentication_error"


class PermissionDenied(ClientError):
    """The key is known and does not open this."""

    status = 403
    type = "permission_error"

    def __init__(self) -> None:
        super().__init__("permission_denied", "This API key may not do that.")


class ImageRefused(ClientError):
    """A picture, document or video that cannot be had, read or shown.

    Broken, locked, of an unsupported format, of an impossible shape, or at a URL that gives none.
    """

    status = 400


class ImageFetchTimeout(ImageRefused):
    """The URL of a picture, document or video was too slow: another's fault, perhaps only now."""

    may_retry = True


class TooLarge(ClientError):
    """Over a size budget: body, picture bytes, pixels or parts."""

    status = 413


class NotFound(ClientError):
    """No such path, model or object."""

    status = 404
    type = "not_found_error"


class MethodNotAllowed(ClientError):
    """The path exists, but not with this method."""

    status = 405

    def __init__(self) -> None:
        super().__init__("method_not_allowed", "This path does not take that method.")


class BodyTimeout(ClientError):
    """The body did not arrive in time."""

    status = 408

    def __init__(self) -> None:
        super().__init__("body_timeout", "The request body took too long to arrive.")


class MediaTypeUnsupported(ClientError):
    """The body's media type or encoding is not taken here."""

    status = 415


class ServerError(ServiceError):
    """The same request may succeed later."""

    type = "server_error"
    may_retry = True
    retry_after_seconds: float | None = None


class Overloaded(ServerError):
    """The queue is full."""

    status = 503
    type = "overloaded_error"

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__("overloaded", "The service is at capacity; try again later.")
        self.retry_after_seconds = retry_after_seconds


class RateLimited(ServerError):
    """The caller's own quota is used up; nobody else's requests change that."""

    status = 429
    type = "rate_limit_error"

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__("rate_limited", message)
        self.retry_after_seconds = retry_after_seconds


class DeadlineUnreachable(ServerError):
    """The queue is longer than the time the request has."""

    status = 503
    type = "timeout_error"

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(
            "deadline_unreachable", "The request cannot be answered within its deadline."
        )
        self.retry_after_seconds = retry_after_seconds


class EngineUnavailable(ServerError):
    """The inference process is starting, restarting or was lost under this request."""

    status = 503
    type = "overloaded_error"
    retry_after_seconds = 5.0


class StorageFull(ServerError):
    """There is no room for another file, until others expire."""

    status = 503
    retry_after_seconds = 60.0

    def __init__(self) -> None:
        super().__init__("storage_full", "There is no room for another file; try again later.")


class OutOfMemory(ServerError):
    """This request did not fit the device's memory; others go on."""

    status = 503

    def __init__(self) -> None:
        super().__init__("gpu_out_of_memory", "The device ran out of memory for this request.")


class Spent(NamedTuple):
    """Tokens that were computed for a request without an answer."""

    num_prompt_tokens: int
    num_output_tokens: int


class DeadlineExceeded(ServerError):
    """The request's time ran out; spent: what it took until then, if it came to that."""

    status = 504
    type = "timeout_error"

    def __init__(self, spent: Spent | None = None) -> None:
        super().__init__("deadline_exceeded", "The request took longer than its deadline.")
        self.spent = spent


class InternalError(ServerError):
    """A fault of ours; the log has the details under the request id."""

    status = 500

    def __init__(self) -> None:
        super().__init__("internal_error", "The service failed to answer; the fault is logged.")
