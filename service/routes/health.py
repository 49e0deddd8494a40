"""Health: the native contract's figures, and the probes that orchestrators ask for."""

import math
import time
from typing import Literal, TypeAlias
from uuid import uuid4

import anyio
import msgspec
from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from inference.protocol import SamplingParams
from service.chat import Chat
from service.conversation import Conversation, Message, TextPart
from service.errors import DeadlineExceeded, ServiceError
from service.exchange import Exchange
from service.request_log import RequestRecord
from service.routes.native import gigabytes

Status: TypeAlias = Literal["healthy", "loading", "unavailable", "stopping"]

_TRIAL_SECONDS = 10.0
_TRIAL_IS_GOOD_FOR_SECONDS = 1.0
_TRIAL = Conversation(
    messages=(Message("user", (TextPart("Hi"),)),), sampling=SamplingParams(max_tokens=1)
)

_encoder = msgspec.json.Encoder()


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How this worker is.

    status: `healthy`, `loading` until the engine was ready once, `unavailable` when it was lost,
        `stopping` when the service takes no more requests.
    """

    status: Status
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
        self._is_stopping = False
        self._trying = anyio.Lock()
        self._tried_at = -math.inf
        self._outcome = ""

    @property
    def is_stopping(self) -> bool:
        """Tell whether the service ends."""
        return self._is_stopping

    def note_stop(self) -> None:
        """Say from here on that no more requests are to be sent."""
        self._is_stopping = True

    def handlers(self) -> list[HTTPRouteHandler]:
        """Make the handlers to register."""
        return [
            get("/v1/health")(self.health),
            get("/health/live")(self.live),
            get("/health/ready")(self.ready),
            get("/health/startup")(self.startup),
            get("/health/deep")(self.deep),
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
        return _reply(health, is_ready=health.status == "healthy")

    async def live(self) -> ASGIResponse:
        """Answer as long as the event loop turns."""
        return _reply(Probe(status="alive"), is_ready=True)

    async def ready(self) -> ASGIResponse:
        """Tell whether to send requests here."""
        status = self._status()
        return _reply(Probe(status=status), is_ready=status == "healthy")

    async def startup(self) -> ASGIResponse:
        """Tell whether this worker was ready once."""
        was_ready = self._chat.was_ready
        return _reply(Probe(status="started" if was_ready else "loading"), is_ready=was_ready)

    async def deep(self) -> ASGIResponse:
        """Generate a token, through everything that a request goes through."""
        async with self._trying:  # one at a time, and whoever waited gets the outcome
            if time.monotonic() - self._tried_at > _TRIAL_IS_GOOD_FOR_SECONDS:
                self._outcome = await self._try()
                self._tried_at = time.monotonic()
        return _reply(Probe(status=self._outcome), is_ready=self._outcome == "healthy")

    async def _try(self) -> str:
        record = RequestRecord(f"health-{uuid4().hex}")
        try:
            with anyio.fail_after(_TRIAL_SECONDS):
                await Exchange(self._chat, _TRIAL, record).texts()
        except TimeoutError:
            return DeadlineExceeded().code
        except ServiceError as error:
            return error.code
        return "healthy"

    def _status(self) -> Status:
        if self._is_stopping:
            return "stopping"
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
