"""Lets pages of named origins call from a browser.

Origins are compared whole. Nothing is sent to others, and never a permission to send credentials:
a key is a header that the page sets itself.
"""

from collections.abc import Iterable

from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

_EXPOSED = (
    b"retry-after, retry-after-ms, server-timing, x-ignored-params, x-request-id, x-should-retry, "
    b"x-stream-id"
)
_METHODS = b"GET, POST, DELETE"
_DEFAULT_HEADERS = b"authorization, content-type, x-api-key, x-request-id"
_PREFLIGHT_SECONDS = b"7200"  # the most that browsers keep


class Cors:
    """Wraps an application."""

    def __init__(self, app: ASGIApp, origins: Iterable[str]) -> None:
        self._app = app
        self._origins = frozenset(origin.encode("ascii") for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a preflight of a named origin; let its other replies be read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = _header(scope, b"origin")
        is_named = origin in self._origins

        async def send_with_permission(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (b"vary", b"origin")]
                if is_named:
                    headers.append((b"access-control-allow-origin", origin))
                    headers.append((b"access-control-expose-headers", _EXPOSED))
                message["headers"] = headers
            await send(message)

        if (
            is_named
            and scope["method"] == "OPTIONS"
            and _header(scope, b"access-control-request-method")
        ):
            await _allow(scope, send_with_permission)
        else:
            await self._app(scope, receive, send_with_permission)


async def _allow(scope: HTTPScope, send: Send) -> None:
    # Whatever headers the page wants to send: clients add many of their own, and no header of ours
    # is dangerous in the hands of an origin that was named.
    wanted = _header(scope, b"access-control-request-headers") or _DEFAULT_HEADERS
    headers = [
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", wanted),
        (b"access-control-max-age", _PREFLIGHT_SECONDS),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _header(scope: HTTPScope, wanted: bytes) -> bytes:
    return next((value for name, value in scope["headers"] if name == wanted), b"")
