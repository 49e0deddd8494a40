"""`GET /admin/status`: what runs here, with which settings; for operators with an admin's key."""

import time

import msgspec
from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from inference.protocol import Limits, ModelFacts, Stats
from service.access.guard import require_admin
from service.chat import Chat
from service.config import Settings
from service.options import options, shown, value_of
from service.request_log import record_of
from service.routes.native import AnyRequest
from service.version import version

_encoder = msgspec.json.Encoder()


class AdminStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The service as the asked worker sees it.

    model, limits, engine: null until an engine was ready once. settings: as one would type them; of
    those with secrets in them, only whose they are.
    """

    version: str
    ready: bool
    uptime_seconds: float
    model: ModelFacts | None
    limits: Limits | None
    engine: Stats | None
    settings: dict[str, str]


class AdminRoutes:
    """The handler, bound to what it looks at."""

    def __init__(self, chat: Chat, settings: Settings) -> None:
        self._chat = chat
        self._settings = {
            option.name: shown(value_of(settings, option)) for option in options().values()
        }
        self._started_at = time.monotonic()

    def handlers(self) -> list[HTTPRouteHandler]:
        """Make the handlers to register."""
        return [get("/admin/status")(self.status)]

    async def status(self, request: AnyRequest) -> ASGIResponse:
        """Tell it."""
        require_admin(record_of(request.scope))
        engine = self._chat.engine
        status = AdminStatus(
            version=version(),
            ready=self._chat.is_ready,
            uptime_seconds=round(time.monotonic() - self._started_at, 1),
            model=engine.model,
            limits=engine.limits,
            engine=engine.stats,
            settings=self._settings,
        )
        return ASGIResponse(
            body=_encoder.encode(status),
            media_type="application/json",
            headers={"cache-control": "no-store"},
        )
