"""The Litestar application: routes, handlers of errors, lifespan. Wiring only."""

import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import anyio.to_thread
import structlog
from litestar import Litestar, Response
from litestar.exceptions import HTTPException
from litestar.plugins import PluginProtocol

from service.access.cors import Cors
from service.access.guard import Guard
from service.access.key_ring import KeyRing
from service.chat import Chat, ConnectedEngine
from service.config import Settings
from service.errors import InternalError, Overloaded, ServiceError
from service.files.file_store import FileStore
from service.http.attendance import ClientGone
from service.http.error_reply import ErrorReplies, from_framework
from service.http.head import HeadAsGet
from service.http.validation import json_too_deep
from service.media.fetch import Fetcher
from service.media.intake import MediaIntake
from service.media.pool import ImagePool
from service.metrics.worker_metrics import WorkerMetrics
from service.request_log import RequestLog, record_of
from service.routes.admin import AdminRoutes
from service.routes.docs import docs_handlers
from service.routes.files import FileRoutes
from service.routes.health import HealthRoutes
from service.routes.metrics import MetricsRoutes
from service.routes.models import ModelRoutes
from service.routes.native import NATIVE_ENVELOPE, AnyRequest, NativeRoutes
from service.routes.openai_chat import OpenAIRoutes
from service.routes.playground import playground_handlers
from service.routes.preview import PreviewRoutes
from service.routes.resume import ResumeRoutes
from service.routes.tokens import TokenRoutes
from service.streams.resumable_streams import ResumableStreams
from service.streams.stream_shelf import StreamShelf
from service.tracing.request_trace import Tracer
from service.tracing.settings import tracing_is_installed, tracing_is_wanted

logger = structlog.get_logger()

Chore: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

_RETRY_SECONDS = 1.0

# All other paths, unknown ones included, tell errors as the OpenAI API does.
_error_replies = ErrorReplies(
    dict.fromkeys(("/v1/chat", "/v1/chat/stream", "/v1/health"), NATIVE_ENVELOPE)
)


def create_app(
    settings: Settings,
    engine: ConnectedEngine,
    pool: ImagePool,
    files: FileStore,
    metrics: WorkerMetrics | None = None,
    shelf: StreamShelf | None = None,
) -> Litestar:
    """Make one worker's application.

    engine, pool: entered and left by the caller, around the application's own life. files: shared
    with the other workers. metrics: None counts for this application alone. shelf: the resumable
    streams of all workers; None has none.
    """
    metrics = metrics or WorkerMetrics(settings=settings.metrics)
    tracer = _tracer(settings)
    fetcher = Fetcher(settings.fetch, settings.media)
    chat = Chat(engine, MediaIntake(settings.media, pool, fetcher, files))
    health = HealthRoutes(chat)
    streams = shelf and ResumableStreams(
        shelf, engine, lambda: health.is_stopping, settings.max_body_bytes
    )
    access = settings.access
    keys = KeyRing(Path(access.api_keys)) if access.api_keys else None
    app = _Application(
        route_handlers=[
            *NativeRoutes(chat, settings).handlers(),
            *OpenAIRoutes(chat, settings).handlers(),
            *ModelRoutes(chat).handlers(),
            *TokenRoutes(chat, settings).handlers(),
            *PreviewRoutes(chat, settings).handlers(),
            *AdminRoutes(chat, settings).handlers(),
            *health.handlers(),
            *FileRoutes(files, settings).handlers(),
            *MetricsRoutes(chat, metrics.slab.ledger, settings).handlers(),
            *(ResumeRoutes(streams).handlers() if streams is not None else ()),
            *docs_handlers(),
            *playground_handlers(),
        ],
        exception_handlers=_exception_handlers(),
        lifespan=[_lifespan(_chores(chat, files, streams, keys), fetcher, tracer)],
        openapi_config=None,  # service.openapi
        logging_config=None,
    )
    app.state.chat = chat  # the worker waits for it before it says that it is ready
    app.state.health = health  # the worker tells it of the end
    # Around the router, not a route's middleware: unknown paths are guarded, get an id and a log
    # line as well.
    router = streams.around(app.asgi_handler) if streams is not None else app.asgi_handler
    guard = Guard(HeadAsGet(router), keys, access, settings.connections, _error_replies.reply)
    app.asgi_handler = RequestLog(
        Cors(guard, access.cors_origins) if access.cors_origins else guard,
        metrics,
        frozenset(route.path for route in app.routes),
        tracer,
    )
    return app


class _Application(Litestar):
    @staticmethod
    def _get_default_plugins(plugins: list[PluginProtocol]) -> list[PluginProtocol]:
        # They serve pydantic and attrs. Others bring pydantic into the environment, and loading it
        # would cost every worker 10 MB.
        return plugins


def _tracer(settings: Settings) -> Tracer | None:
    if not tracing_is_wanted(settings.tracing, os.environ):
        return None
    if not tracing_is_installed():
        logger.warning("tracing_not_installed", extra="otel")
        return None
    # It brings five libraries, which a service without traces need not load.
    from service.tracing.opentelemetry_tracer import OpenTelemetryTracer

    return OpenTelemetryTracer(settings.tracing)


def _chores(
    chat: Chat, files: FileStore, streams: ResumableStreams | None, keys: KeyRing | None
) -> list[Chore]:
    chores: list[Chore] = [chat.load, files.keep_swept]
    if streams is not None:
        chores.append(streams.keep_swept)
    if keys is not None:
        chores.append(keys.follow)
    return chores


def _lifespan(
    chores: Sequence[Chore], fetcher: Fetcher, tracer: Tracer | None
) -> Callable[[Litestar], AbstractAsyncContextManager[None]]:
    """Do the chores as long as the application lives, and close at its end.

    A chore that fails begins again: with it would end the others, and nobody would notice that
    files are not swept or that a key which was taken away still counts.
    """

    async def keep_up(chore: Chore) -> None:
        while True:
            try:
                await chore()
            except Exception:
                logger.exception("chore_failed")
                await anyio.sleep(_RETRY_SECONDS)
            else:
                return

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncGenerator[None, None]:
        async with anyio.create_task_group() as tasks:
            for chore in chores:
                tasks.start_soon(keep_up, chore)
            yield
            tasks.cancel_scope.cancel()
        fetcher.close()
        if tracer is not None:
            await anyio.to_thread.run_sync(tracer.close)

    return lifespan


def _exception_handlers() -> dict[int | type[Exception], Callable[..., Response[Any]]]:
    return {
        ServiceError: _tell,
        HTTPException: _refuse,
        ClientGone: _leave,
        RecursionError: _refuse_depth,
        MemoryError: _refuse_for_now,
        Exception: _fail,
    }


def _tell(request: AnyRequest, error: ServiceError) -> Response[bytes]:
    return _error_replies.reply(request.scope, error)


def _refuse(request: AnyRequest, error: HTTPException) -> Response[bytes]:
    response = _tell(request, from_framework(error))
    for name, value in (error.headers or {}).items():
        response.headers.setdefault(name, value)
    return response


def _refuse_depth(request: AnyRequest, _: RecursionError) -> Response[bytes]:
    # Nothing here recurses but over the client's own JSON: its tools, its schemas.
    return _tell(request, json_too_deep())


def _refuse_for_now(request: AnyRequest, error: MemoryError) -> Response[bytes]:
    logger.error("Out of memory", exc_info=error)
    return _tell(request, Overloaded(_RETRY_SECONDS))


def _leave(request: AnyRequest, _: ClientGone) -> Response[None]:
    record_of(request.scope).client_gone = True
    return Response(None, status_code=499)


def _fail(request: AnyRequest, error: Exception) -> Response[bytes]:
    logger.error("Unhandled error", exc_info=error)
    return _tell(request, InternalError())
