"""Answers HEAD wherever GET is answered, as HTTP asks of servers; the router knows only GET."""

from litestar.types import ASGIApp, Receive, Scope, Send


class HeadAsGet:
    """Wraps an application; the server itself leaves the body of such an answer out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            # A copy: the server looks at its own scope to see that no body is wanted.
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)
