"""The key a request comes with, from whichever header its client writes."""

from litestar.types import Scope

from service.errors import Unauthenticated

_BEARER = b"bearer "


def presented_key(scope: Scope) -> bytes:
    """Return the key as it was sent, its case kept.

    Raises:
        Unauthenticated: there is none, or there are two that differ.
    """
    found: set[bytes] = set()
    for name, value in scope["headers"]:
        if name == b"authorization" and value[: len(_BEARER)].lower() == _BEARER:
            found.add(value[len(_BEARER) :].strip())
        elif name == b"x-api-key":
            found.add(value.strip())
    found.discard(b"")
    if not found:
        raise Unauthenticated("api_key_missing", "This service needs an API key.")
    if len(found) > 1:
        raise Unauthenticated("api_key_invalid", "The request has two API keys.")
    return found.pop()
