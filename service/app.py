"""The Litestar application: routes, handlers of errors, lifespan. Wiring only."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import anyio
import structlog
from litestar import Litestar, Response
from litestar.exceptions import HTTPException
from litestar.plugins import PluginProtocol

from service.attendance import ClientGone
from service.chat import Chat, ConnectedEngine
from service.config import Settings
from service.error_reply import from_framework
from service.errors import ImageRefused, InternalError, NotFound, ServiceError
from service.media.intake import MediaIntake
from service.media.pool import ImagePool
from service.request_log import RequestLog, record_of
from service.routes.docs import docs_handlers
from service.routes.health import HealthRoutes
from service.routes.native import AnyRequest, NativeRoutes, render_error

logger = structlog.get_logger()


def create_app(settings: Settings, engine: ConnectedEngine, pool: ImagePool) -> Litestar:
    """Make one worker's application.

    engine, pool: entered and left by the caller, around the application's own life.
    """
    chat = Chat(engine, MediaIntake(settings.media, pool, _NoFetcher(), _NoFiles()))

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncGenerator[None, None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(chat.load)
            yield
            tasks.cancel_scope.cancel()

    app = _Application(
        route_handlers=[
            *NativeRoutes(chat, settings).handlers(),
            *HealthRoutes(chat).handlers(),
            *docs_handlers(),
        ],
        exception_handlers={
            ServiceError: render_error,
            HTTPException: _refuse,
            ClientGone: _leave,
            Exception: _fail,
        },
        lifespan=[lifespan],
        openapi_config=None,  # service.openapi
        logging_config=None,
    )
    app.state.chat = chat  # the worker waits for it before it says that it is ready
    # Around the router, not a route's middleware: unknown paths get an id and a log line as well.
    app.asgi_handler = RequestLog(app.asgi_handler)
    return app


class _Application(Litestar):
    @staticmethod
    def _get_default_plugins(plugins: list[PluginProtocol]) -> list[PluginProtocol]:
        # They serve pydantic and attrs. Others bring pydantic into the environment, and loading it
        # would cost every worker 10 MB.
        return plugins


class _NoFetcher:
    async def fetch_all(self, urls: Sequence[tuple[str, str]]) -> list[bytes]:
        for _, param in urls:
            raise ImageRefused("image_url_unsupported", "Remote URLs are not fetched.", param=param)
        return []


class _NoFiles:
    async def read(self, file_id: str, owner: str, param: str) -> bytes:
        raise NotFound("file_not_found", "There is no file of this id.", param=param)


def _refuse(request: AnyRequest, error: HTTPException) -> Response[bytes]:
    response = render_error(request, from_framework(error))
    for name, value in (error.headers or {}).items():
        response.headers.setdefault(name, value)
    return response


def _leave(request: AnyRequest, _: ClientGone) -> Response[None]:
    record_of(request.scope).client_gone = True
    return Response(None, status_code=499)


def _fail(request: AnyRequest, error: Exception) -> Response[bytes]:
    logger.error("Unhandled error", exc_info=error)
    return render_error(request, InternalError())
