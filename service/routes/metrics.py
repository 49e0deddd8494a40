"""`GET /metrics`: the whole service's figures, from whichever worker is asked."""

import functools
from typing import TYPE_CHECKING

from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from inference.ledger import Ledger
from service.chat import Chat
from service.config import Settings
from service.routes.native import AnyRequest

if TYPE_CHECKING:
    from service.metrics.exposition import Exposer


class MetricsRoutes:
    """The handler, bound to what it reads."""

    def __init__(self, chat: Chat, ledger: Ledger, settings: Settings) -> None:
        self._chat = chat
        self._ledger = ledger
        self._vllm_names = settings.metrics.vllm_metric_names

    def handlers(self) -> list[HTTPRouteHandler]:
        """Make the handlers to register."""
        return [get("/metrics")(self.metrics)]

    async def metrics(self, request: AnyRequest) -> ASGIResponse:
        """Tell every figure in Prometheus' text format, or in OpenMetrics where that is accepted.

        A few milliseconds of work; it stays on the event loop, which writes what it reads.
        """
        exposition = self._exposer.expose(request.headers.get("accept", ""))
        return ASGIResponse(
            body=exposition.text,
            headers={"content-type": exposition.content_type, "cache-control": "no-store"},
        )

    @functools.cached_property
    def _exposer(self) -> "Exposer":
        # Only workers that are asked pay for the library.
        from service.metrics.exposition import Exposer

        return Exposer(self._ledger, vllm_names=self._vllm_names, model_name=self._model_name)

    def _model_name(self) -> str | None:
        model = self._chat.engine.model
        return model and model.name
