"""Starts the children: what they run, and what they are given.

Knows what each kind of child needs; when to start whom is the supervisor's to say.
"""

import os
import secrets
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

import structlog

from inference.config import EngineConfig
from inference.ledger import Place
from inference.log import LogConfig
from service.config import Settings
from service.metrics.process_metrics import ProcessMetrics
from service.processes.child import Child
from service.processes.threads import plan_threads, variables_set

INFERENCE = "inference"

log = structlog.get_logger(__name__)


class WorkerArguments(TypedDict):
    """What a web worker is given beside its control pipe."""

    settings: Settings
    socket: socket.socket
    address: str
    authkey: bytes
    place: Place


class InferenceArguments(TypedDict):
    """What the inference process is given beside its control pipe."""

    config: EngineConfig
    address: str
    authkey: bytes
    logging: LogConfig
    place: Place


class Entries(NamedTuple):
    """What the children run."""

    worker: Callable[..., None]
    inference: Callable[..., None]


def _run_worker(control: Connection, **arguments: Unpack[WorkerArguments]) -> None:
    from service.processes.worker import run_worker

    run_worker(control=control, **arguments)


def _run_inference(control: Connection, **arguments: Unpack[InferenceArguments]) -> None:
    from inference.main import run_inference

    run_inference(control=control, **arguments)


ENTRIES = Entries(worker=_run_worker, inference=_run_inference)


class Launcher:
    """Starts one child after another, and lends each its place in the metrics."""

    def __init__(
        self,
        settings: Settings,
        entries: Entries,
        listener: socket.socket,
        address: str,
        metrics: ProcessMetrics,
    ) -> None:
        """Take what children share: where workers listen, and where they meet the engine."""
        self._settings = settings
        self._entries = entries
        self._listener = listener
        self._address = address
        self._authkey = secrets.token_bytes(32)
        self._metrics = metrics
        self._places: dict[Child, Place] = {}

    def launch(self, name: str) -> Child:
        """Start the inference process or a worker, as the name says.

        Raises:
            OSError, MemoryError: the machine has no room for it.
        """
        place = self._metrics.lease()
        start = self._start_inference if name == INFERENCE else self._start_worker
        try:
            child = start(log_config(self._settings, name), place)
        except (OSError, MemoryError):
            self._metrics.release(place)
            raise
        self._places[child] = place
        return child

    def take_back(self, child: Child) -> None:
        """Give the place of a child that has ended to the next one."""
        self._metrics.release(self._places.pop(child))

    def _start_worker(self, logging: LogConfig, place: Place) -> Child:
        arguments = WorkerArguments(
            settings=self._settings,
            socket=self._listener,
            address=self._address,
            authkey=self._authkey,
            place=place,
        )
        return Child(logging, self._entries.worker, arguments)

    def _start_inference(self, logging: LogConfig, place: Place) -> Child:
        # A killed engine leaves its socket's name behind.
        Path(self._address).unlink(missing_ok=True)
        plan = plan_threads(self._settings, os.environ)
        log.info("engine_threads", plan=plan.reason)
        arguments = InferenceArguments(
            config=self._settings.engine,
            address=self._address,
            authkey=self._authkey,
            logging=logging,
            place=place,
        )
        with variables_set(plan.variables):
            return Child(logging, self._entries.inference, arguments)


def log_config(settings: Settings, process: str) -> LogConfig:
    """Make one process's part of the settings for the log."""
    return LogConfig(level=settings.log_level, format=settings.log_format, process=process)
