"""The one table from the engine's refusal codes to the errors clients see."""

from typing import assert_never

from inference.protocol import RefusalCode, Refused
from inference.quota import QuotaKind
from service.errors import (
    ContextLengthExceeded,
    DeadlineUnreachable,
    EngineUnavailable,
    InternalError,
    OutOfMemory,
    Overloaded,
    RateLimited,
    RequestInvalid,
    ServiceError,
)

RETRY_AFTER_SECONDS = 1.0

_OVER_QUOTA: dict[QuotaKind | None, str] = {
    "concurrent_requests": "This key's requests at a time are all running.",
    "requests": "This key's requests a minute are used up.",
    "tokens": "This key's tokens a minute are used up.",
}


def error_of_refusal(refused: Refused) -> ServiceError:  # noqa: C901, PLR0911 - a table
    """Make the error for a refusal."""
    match refused.code:
        case RefusalCode.CONTEXT_LENGTH_EXCEEDED:
            return ContextLengthExceeded(needed=refused.needed or 0, allowed=refused.allowed or 0)
        case RefusalCode.DUPLICATE_REQUEST_ID:
            return RequestInvalid("duplicate_request_id", "A request of this id is running.")
        case RefusalCode.GRAMMAR_INVALID:
            return RequestInvalid("schema_unsupported", "The output schema is not supported.")
        case RefusalCode.GRAMMAR_TOO_COMPLEX:
            return RequestInvalid("grammar_too_complex", "The output schema is too complex.")
        case RefusalCode.OVERLOADED:
            return Overloaded(refused.retry_after_seconds or RETRY_AFTER_SECONDS)
        case RefusalCode.RATE_LIMITED:
            message = _OVER_QUOTA.get(refused.quota, "This key's quota is used up.")
            return RateLimited(message, refused.retry_after_seconds or RETRY_AFTER_SECONDS)
        case RefusalCode.DEADLINE_UNREACHABLE:
            return DeadlineUnreachable(refused.retry_after_seconds or RETRY_AFTER_SECONDS)
        case RefusalCode.DRAINING:
            return EngineUnavailable("engine_restarting", "The engine is restarting.")
        case RefusalCode.OUT_OF_MEMORY:
            return OutOfMemory()
        case RefusalCode.INPUT_INVALID | RefusalCode.INTERNAL:
            # Clients' mistakes are found before the wire: what the engine finds is ours.
            return InternalError()
        case _:
            assert_never(refused.code)
