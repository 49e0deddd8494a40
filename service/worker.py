"""A web worker: uvicorn and the Litestar app on the shared socket, told what to do by a pipe.

It serves from its first moment; until the engine answers, health says so and chat is refused. It
never loads torch.
"""

import os
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

import anyio
import uvicorn
from litestar import Litestar

from inference.protocol import FrameError, Heartbeat, Started, decode_stop, encode
from service.app import create_app
from service.chat import Chat
from service.config import Settings
from service.engine_client import EngineClient
from service.file_store import FileStore
from service.heap import return_freed_memory
from service.http_protocol import protocol_with
from service.media.pool import ImagePool

_HEARTBEAT_SECONDS = 1.0
_MAX_CONTROL_FRAME_BYTES = 64 * 1024


def run_worker(
    *,
    settings: Settings,
    socket: socket.socket,
    address: str,
    authkey: bytes,
    control: Connection,
) -> None:
    """Serve until the supervisor or a SIGTERM says stop, then finish what runs and return.

    socket: already listening, shared with the other workers. address, authkey: the engine's.
    """
    return_freed_memory()
    # Prompts are small and many: threads for each would only take cores from the engine.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    async def serve() -> None:
        pool = ImagePool(settings.media, num_processes=settings.num_image_processes)
        async with EngineClient(address, authkey) as engine:
            # Beside the engine's socket is the folder that all workers share.
            files = FileStore(settings.files, Path(address).parent / "files")
            app = create_app(settings, engine, pool, files)
            server = _Server(_uvicorn_config(settings, app))
            _obey(server, control)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_report_ready, server, pool, app.state.chat, control)
                tasks.start_soon(_report_life, server, engine, control)
                await server.serve(sockets=[socket])
                tasks.cancel_scope.cancel()
            pool.close()
            if engine.has_failed:
                raise RuntimeError("the connection to the engine has failed for good")

    anyio.run(serve, backend_options={"use_uvloop": True})


class _Server(uvicorn.Server):
    """uvicorn's server with its hands off the signals.

    serving: set once connections are accepted.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.serving = anyio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.serving.set()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    def leave(self, drain_seconds: float | None = None) -> None:
        """Stop accepting and finish what runs; may be called from any thread."""
        if drain_seconds is not None:
            self.config.timeout_graceful_shutdown = drain_seconds  # type: ignore[assignment]
        self.should_exit = True


def _uvicorn_config(settings: Settings, app: Litestar) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol_with(settings.connections),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.drain_seconds,  # type: ignore[arg-type]
    )


def _obey(server: _Server, control: Connection) -> None:
    """Leave on SIGTERM or on the supervisor's word; end at once when the supervisor is gone."""

    def on_terminate(number: int, frame: FrameType | None) -> None:
        server.leave()

    def listen() -> None:
        while True:
            try:
                stop = decode_stop(control.recv_bytes(_MAX_CONTROL_FRAME_BYTES))
            except (EOFError, OSError, FrameError):
                os._exit(1)
            server.leave(stop.drain_seconds)

    signal.signal(signal.SIGTERM, on_terminate)
    threading.Thread(target=listen, name="control", daemon=True).start()


async def _report_ready(server: _Server, pool: ImagePool, chat: Chat, control: Connection) -> None:
    """Tell the supervisor once that requests are answered in full."""
    await pool.start()
    await server.serving.wait()
    await chat.load()
    if not chat.was_ready:
        raise RuntimeError("this worker cannot answer; the log has the reason")
    control.send_bytes(encode(Started()))


async def _report_life(server: _Server, engine: EngineClient, control: Connection) -> None:
    """Tell the supervisor that the event loop turns; leave when only a new worker helps."""
    while not engine.has_failed:
        control.send_bytes(encode(Heartbeat()))
        await anyio.sleep(_HEARTBEAT_SECONDS)
    server.leave()
