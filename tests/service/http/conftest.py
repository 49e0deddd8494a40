"""The application behind a real server, with an engine that says what a test wants."""

import base64
import contextlib
import io
import socket
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.lowlevel
import httpx
import msgspec
import pytest
import structlog
import uvicorn
from litestar import Litestar
from PIL import Image
from tokenizers import Tokenizer

from inference.protocol import (
    Admission,
    Delta,
    Finish,
    FinishReason,
    Generate,
    Limits,
    ModelFacts,
    Stats,
    TokenLogprob,
)
from service.app import create_app
from service.config import Settings
from service.files.file_store import FileStore
from service.http.http_protocol import protocol_with
from service.media.budget import MediaLimits
from service.media.pool import ImagePool
from service.streams.stream_shelf import StreamShelf


class ScriptedEngine:
    """What the web side sees of an engine; a test writes its lines.

    pieces: one delta each, the same for every answer. ending: how the answers end. error: raised
    instead. holds: when set, nothing comes after the first piece until the event. requests,
    cancelled: what it was told. unfinished: ids in work.
    """

    def __init__(self, model: ModelFacts, encode: Callable[[str], list[int]]) -> None:
        self._encode = encode
        self._facts = model
        self.reset()

    def reset(self) -> None:
        self.model: ModelFacts | None = self._facts
        self.limits = Limits(
            block_size=16,
            num_blocks=64,
            max_num_seqs=8,
            max_num_batched_tokens=256,
            max_queued_requests=8,
        )
        self.stats: Stats | None = Stats(gpu_memory_used_bytes=3 * 2**29)
        self.is_ready = True
        self.pieces = ["A red", " circle."]
        self.ending = (FinishReason.STOP, "")
        self.error: Exception | None = None
        self.holds: anyio.Event | None = None
        self.requests: list[Generate] = []
        self.cancelled: list[str] = []
        self.unfinished: set[str] = set()

    def knows(self, request_id: str) -> bool:
        return request_id in self.unfinished

    async def wait_ready(self) -> None:
        await eventually(lambda: self.is_ready)

    def cancel(self, request_id: str) -> None:
        if request_id in self.unfinished:
            self.cancelled.append(request_id)
            self.unfinished.discard(request_id)

    async def generate(self, request: Generate) -> AsyncGenerator[Delta, None]:
        assert request.request_id not in self.unfinished
        self.requests.append(request)
        self.unfinished.add(request.request_id)
        indexes = range(request.num_sequences)
        num_tokens = 0
        admission: Admission | None = Admission(
            num_cached_tokens=2, queue_seconds=0.02, vision_seconds=0.03, prefill_seconds=0.01
        )
        for place, piece in enumerate(self.pieces):
            if self.holds is not None and place > 0:
                await self.holds.wait()
            token_ids = self._encode(piece)
            num_tokens += len(token_ids)
            for index in indexes:
                yield Delta(
                    request_id=request.request_id,
                    index=index,
                    token_ids=token_ids,
                    logprobs=_logprobs(token_ids, request.sampling.logprobs),
                    admission=admission,
                )
            admission = None
            await anyio.lowlevel.checkpoint()
        if self.holds is not None:
            await self.holds.wait()
        self.unfinished.discard(request.request_id)
        if self.error is not None:
            raise self.error
        reason, detail = self.ending
        finish = Finish(
            reason=reason, detail=detail, num_output_tokens=num_tokens + 1, decode_seconds=0.04
        )
        for index in indexes:
            yield Delta(
                request_id=request.request_id, index=index, admission=admission, finish=finish
            )


def _logprobs(token_ids: list[int], num_top: int | None) -> list[TokenLogprob]:
    if num_top is None:
        return []
    return [
        TokenLogprob(
            token_id=token_id,
            logprob=-0.5,
            top=[(token_id + place, -0.5 - place) for place in range(num_top)],
        )
        for token_id in token_ids
    ]


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop that the service runs on."""
    return "asyncio", {"use_uvloop": True}


async def eventually(condition: Callable[[], object]) -> None:
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - nothing sets an event
            await anyio.sleep(0.01)


class Service(NamedTuple):
    """A running server; client speaks to it, port is where it listens."""

    client: httpx.AsyncClient
    engine: ScriptedEngine
    port: int


@contextlib.asynccontextmanager
async def serving(
    engine: object, *, drain_seconds: int = 5, shared: str | None = None, **settings: object
) -> AsyncIterator[tuple[httpx.AsyncClient, int]]:
    """Serve the application on a free loopback port; its streams lie below `shared`, if given."""
    media = MediaLimits(max_images=3, max_image_bytes=100_000, max_total_bytes=150_000)
    defaults: dict[str, object] = {"media": media, "max_body_bytes": 300_000}
    pool = ImagePool(media, num_processes=1)
    chosen = Settings(**{**defaults, **settings})  # type: ignore[arg-type]
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="loupe-"))
        files = FileStore(chosen.files, Path(folder) / "files")
        shelf = StreamShelf(
            Path(shared or folder) / "streams",
            resume_seconds=chosen.resume_seconds,
            max_streams=chosen.max_resumable_streams,
            max_bytes=chosen.max_resumable_bytes,
        )
        app = create_app(chosen, engine, pool, files, shelf=shelf)  # type: ignore[arg-type]
        yield await stack.enter_async_context(running_server(app, chosen, pool, drain_seconds))


@contextlib.asynccontextmanager
async def running_server(
    app: Litestar, settings: Settings, pool: ImagePool, drain_seconds: int
) -> AsyncIterator[tuple[httpx.AsyncClient, int]]:
    config = uvicorn.Config(
        app,
        http=protocol_with(settings.connections),
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=drain_seconds,
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    with contextlib.closing(pool), socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            await eventually(lambda: server.started)
            base_url = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=base_url, trust_env=False, timeout=10) as client:
                try:
                    yield client, port
                finally:
                    server.should_exit = True


@pytest.fixture(scope="session")
def model(checkpoint: Path, read_model_facts: Callable[[Path], ModelFacts]) -> ModelFacts:
    """The demo checkpoint's facts, with a bound that keeps pictures small."""
    return msgspec.structs.replace(read_model_facts(checkpoint), max_pixels=128 * 128)


@pytest.fixture(scope="session")
def new_engine(model: ModelFacts, checkpoint: Path) -> Callable[[], ScriptedEngine]:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    return lambda: ScriptedEngine(model, lambda text: tokenizer.encode(text).ids)


@pytest.fixture(scope="module")
async def running(new_engine: Callable[[], ScriptedEngine]) -> AsyncIterator[Service]:
    engine = new_engine()
    async with serving(engine) as (client, port):
        yield Service(client, engine, port)


@pytest.fixture
def service(running: Service) -> Service:
    running.engine.reset()
    return running


@pytest.fixture(scope="session")
def serve() -> Callable[..., contextlib.AbstractAsyncContextManager[tuple[httpx.AsyncClient, int]]]:
    """Serve otherwise: `async with serve(engine, request_timeout_seconds=1) as (client, port)`."""
    return serving


@pytest.fixture(name="eventually")
def fixture_eventually() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """Wait until a condition is true."""
    return eventually


@pytest.fixture(autouse=True)
def log() -> Iterator[list[structlog.typing.EventDict]]:
    """Every event logged during the test."""
    merge = structlog.contextvars.merge_contextvars
    with structlog.testing.capture_logs(processors=[merge]) as events:
        yield events


@pytest.fixture(scope="session")
def picture() -> bytes:
    """A small PNG."""
    return _png((200, 30, 30))


@pytest.fixture(scope="session")
def other_picture() -> bytes:
    return _png((30, 30, 200))


def _png(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def picture_text(picture: bytes) -> str:
    return base64.b64encode(picture).decode()
