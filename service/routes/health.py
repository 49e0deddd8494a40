"""Health: the native contract's figures, and the two probes orchestrators ask for."""

import time
from typing import Literal

import msgspec
from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from service.chat import Chat
from service.routes.native import gigabytes

_encoder = msgspec.json.Encoder()


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How this worker is.

    status: `healthy`, `loading` until the engine was ready once, `unavailable` when it was lost.
    """

    status: Literal["healthy", "loading", "unavailable"]
    model_loaded: bool
    gpu_memory_used_gb: float
    uptime_seconds: float


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a probe; the status code says the same."""

    status: str


class HealthRoutes:
    """The handlers, bound to what they look at."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._started_at = time.monotonic()

    def handlers(self) -> list[HTTPRouteHandler]:
        """Make the handlers to register."""
        return [
            get("/v1/health")(self.health),
            get("/health/live")(self.live),
            get("/health/ready")(self.ready),
        ]

    async def health(self) -> ASGIResponse:
        """Tell the contract's figures; 503 while no request would be answered."""
        engine = self._chat.engine
        stats = engine.stats
        health = Health(
            status=self._status(),
            model_loaded=self._chat.is_ready,
            gpu_memory_used_gb=gigabytes(stats.gpu_memory_used_bytes if stats else 0),
            uptime_seconds=round(time.monotonic() - self._started_at, 1),
        )
        return _reply(health, is_ready=self._chat.is_ready)

    async def live(self) -> ASGIResponse:
        """Answer as long as the event loop turns."""
        return _reply(Probe(status="alive"), is_ready=True)

    async def ready(self) -> ASGIResponse:
        """Tell whether to send requests here."""
        return _reply(Probe(status=self._status()), is_ready=self._chat.is_ready)

    def _status(self) -> Literal["healthy", "loading", "unavailable"]:
        if self._chat.is_ready:
            return "healthy"
        return "unavailable" if self._chat.was_ready else "loading"


def _reply(body: msgspec.Struct, *, is_ready: bool) -> ASGIResponse:
    return ASGIResponse(
        body=_encoder.encode(body),
        media_type="application/json",
        status_code=200 if is_ready else 503,
        headers={"cache-control": "no-store"},
    )
