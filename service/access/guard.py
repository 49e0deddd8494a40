"""The layer that every request passes before the application: may it be here, and who sends it?

It stands around the router, so that unknown paths are guarded as well, and it refuses before a
byte of a body is read.
"""

from collections.abc import Callable

from litestar import Request, Response
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from service.access.caller import ANYONE, Caller
from service.access.crowd import Crowd
from service.access.hosts import Hosts
from service.access.key_ring import KeyRing
from service.access.open_paths import OpenPaths, is_health
from service.access.presented_key import presented_key
from service.access.settings import AccessSettings
from service.errors import PermissionDenied, ServiceError, Unauthenticated
from service.http.body_clock import BodyClock
from service.http.connection_limits import ConnectionLimits
from service.request_log import RequestRecord, record_of


class Guard:
    """Wraps an application. keys: None where anyone may ask."""

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing | None,
        settings: AccessSettings,
        limits: ConnectionLimits,
        reply: Callable[[Scope, ServiceError], Response[bytes]],
    ) -> None:
        """reply: tells an error in the shape that the request's path has."""
        self._app = app
        self._keys = keys
        self._reply = reply
        self._hosts = Hosts(settings.allowed_hosts)
        self._open_paths = OpenPaths(with_metrics=settings.open_metrics)
        self._crowd = Crowd(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http" or is_health(scope["path"]):
            await self._app(scope, receive, send)
            return
        clock: BodyClock | None = scope["state"].get(BodyClock.STATE_KEY)
        if clock is not None:
            receive = clock.attend(receive)
        try:
            self._hosts.check(scope)
            record_of(scope).caller = caller = self._caller(scope)
            self._crowd.enter(caller)
        except ServiceError as error:
            response = self._reply(scope, error)
            request = Request[object, object, object](scope, receive, send)
            await response.to_asgi_response(app=None, request=request)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._crowd.leave(caller)

    def _caller(self, scope: HTTPScope) -> Caller:
        if self._keys is None or scope["path"] in self._open_paths:
            return ANYONE
        caller = self._keys.find(presented_key(scope))
        if caller is None:
            raise Unauthenticated("api_key_invalid", "This API key is not known here.")
        return caller


def require_admin(record: RequestRecord) -> None:
    """Let only an admin's key pass; where no keys are set, nobody is an admin.

    Raises:
        PermissionDenied: it is another's.
    """
    if not record.caller.is_admin:
        raise PermissionDenied
