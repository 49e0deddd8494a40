"""A web worker: uvicorn and the Litestar app on the shared socket, told what to do by a pipe.

It serves from its first moment; until the engine answers, health says so and chat is refused. It
never loads torch.
"""

import math
import os
import random
import signal
import socket
import sys
import threading
from multiprocessing import current_process
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

import anyio
import uvicorn
from litestar import Litestar

from inference.control import Heartbeat, ReplaceMe, Started, Stop
from inference.frames import MAX_CONTROL_FRAME_BYTES, FrameError, decode_stop, encode
from inference.ledger import Place, Slab
from inference.main import has_room
from service.app import create_app
from service.chat import Chat
from service.config import Settings
from service.engine.engine_client import EngineClient
from service.files.file_store import FileStore
from service.http.http_protocol import protocol_with
from service.http.web_server import WebServer
from service.media.pool import ImagePool
from service.metrics.worker_metrics import WorkerMetrics
from service.processes.heap import return_freed_memory
from service.streams.stream_shelf import StreamShelf

_HEARTBEAT_SECONDS = 1.0
_SHARE_JITTER = 0.2
_SWITCH_SECONDS = 0.0005


def run_worker(
    *,
    settings: Settings,
    socket: socket.socket,
    address: str,
    authkey: bytes,
    control: Connection,
    place: Place | None = None,
) -> None:
    """Serve until the supervisor or a SIGTERM says stop, then finish what runs and return.

    socket: already listening, shared with the other workers. address, authkey: the engine's.
    place: in the ledger, for what is counted here; None counts for this worker alone.
    """
    return_freed_memory()
    # How long a thread that works on a file may keep the event loop waiting for the interpreter.
    sys.setswitchinterval(_SWITCH_SECONDS)
    # Prompts are small and many: threads for each would only take cores from the engine.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    async def serve() -> None:
        pool = ImagePool(settings.media, num_processes=settings.num_image_processes)
        metrics = WorkerMetrics(place and Slab(place), settings.metrics, current_process().name)
        async with EngineClient(address, authkey, metrics=metrics) as engine:
            # Beside the engine's socket is the folder that all workers share.
            shared = Path(address).parent
            files = FileStore(settings.files, shared / "files")
            app = create_app(settings, engine, pool, files, metrics, _shelf(settings, shared))
            server = WebServer(_uvicorn_config(settings, app, metrics), app.state.health.note_stop)
            _obey(server, settings.drain_seconds, control)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_report_ready, server, pool, app.state.chat, control)
                tasks.start_soon(_report_life, server, engine, settings, control)
                tasks.start_soon(_note_memory, metrics)
                await server.serve(sockets=[socket])
                tasks.cancel_scope.cancel()
            pool.close()
            if engine.has_failed:
                raise RuntimeError("the connection to the engine has failed for good")

    anyio.run(serve, backend_options={"use_uvloop": True})


def _shelf(settings: Settings, shared: Path) -> StreamShelf:
    return StreamShelf(
        shared / "streams",
        resume_seconds=settings.resume_seconds,
        max_streams=settings.max_resumable_streams,
        max_bytes=settings.max_resumable_bytes,
    )


def _uvicorn_config(settings: Settings, app: Litestar, metrics: WorkerMetrics) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol_with(settings.connections, metrics),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_seconds,
    )


def _obey(server: WebServer, drain_seconds: float, control: Connection) -> None:
    """Leave on SIGTERM or on the supervisor's word; end at once when the supervisor is gone."""

    def on_terminate(number: int, frame: FrameType | None) -> None:
        server.leave(Stop(drain_seconds=drain_seconds))

    def listen() -> None:
        while True:
            try:
                stop = decode_stop(control.recv_bytes(MAX_CONTROL_FRAME_BYTES))
            except (EOFError, OSError, FrameError):
                os._exit(1)
            server.leave(stop)

    signal.signal(signal.SIGTERM, on_terminate)
    threading.Thread(target=listen, name="control", daemon=True).start()


async def _report_ready(
    server: WebServer, pool: ImagePool, chat: Chat, control: Connection
) -> None:
    """Tell the supervisor once that requests are answered in full."""
    await pool.start()
    await server.serving.wait()
    await chat.load()
    if not chat.was_ready:
        raise RuntimeError("this worker cannot answer; the log has the reason")
    control.send_bytes(encode(Started()))


async def _report_life(
    server: WebServer, engine: EngineClient, settings: Settings, control: Connection
) -> None:
    """Tell the supervisor that the event loop turns, and when this worker has done its share.

    Leaves when only a new worker helps.
    """
    share = settings.max_requests_per_worker
    next_share = _jittered(share) if share else math.inf
    while not engine.has_failed:
        if has_room(control):
            control.send_bytes(encode(Heartbeat()))
        if server.num_answered >= next_share and has_room(control):
            control.send_bytes(encode(ReplaceMe()))
            next_share = server.num_answered + (share or 0)  # if no successor gets ready
        await anyio.sleep(_HEARTBEAT_SECONDS)
    server.leave(Stop(drain_seconds=settings.drain_seconds))


async def _note_memory(metrics: WorkerMetrics) -> None:
    while True:
        metrics.note_memory()
        await anyio.sleep(_HEARTBEAT_SECONDS)


def _jittered(share: int) -> float:
    """Spread the workers' ends: they share the requests evenly."""
    return share * random.uniform(1.0, 1.0 + _SHARE_JITTER)  # noqa: S311 - nothing secret
