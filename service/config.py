"""The settings: frozen Structs, read once by the command line and passed on, never global.

Every field of `Settings` and of the Structs nested in it is one setting in one flat name
space; `service.options` makes the flags, the variables and the documents from these Structs.
"""

import math
import os
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec

from inference.config import EngineConfig
from inference.log import LogFormat, LogLevel
from service.access.settings import AccessSettings
from service.files.file_settings import FileSettings
from service.http.connection_limits import ConnectionLimits
from service.media.budget import MediaLimits
from service.media.fetch_settings import FetchSettings
from service.metrics.settings import MetricsSettings
from service.tracing.settings import TracingSettings

ThreadWait: TypeAlias = Literal["auto", "passive", "bounded", "active"]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]

_DEFAULT_MAX_WORKERS = 4
_MAX_IMAGE_PROCESSES_PER_WORKER = 4
_CGROUP_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything `loupe serve` is told. None means: chosen from the machine.

    host: address to listen on; loopback, so that nothing is open to a network by accident.
    port: TCP port; 0 takes a free one, which the ready line names.
    workers: web worker processes; None takes one per core, at most 4.
    image_processes: processes per web worker that decode pictures; None shares out the cores.
    max_body_bytes: largest request body; 64 MiB holds the pictures of one request in base64.
    request_timeout_seconds: from the request's arrival to its last byte; then 504 or an error
        event.
    keep_alive_seconds: how long an idle connection stays open; longer than the 60 s that common
        proxies keep theirs, so that they never send into a closing one.
    drain_seconds: how long a stop waits for running requests; whatever runs the service must
        grant about 10 s more before it kills.
    shutdown_delay_seconds: how long a stop first goes on taking requests, with readiness already
        false, so that load balancers turn away in time; on top of drain_seconds.
    max_requests_per_worker: a web worker is replaced, without a gap, after about so many requests;
        None never does.
    resume_seconds: how long a stream that was asked for with `X-Resumable` goes on, and is kept,
        without its client.
    max_resumable_streams: how many are kept at a time; more are refused with 503.
    max_resumable_bytes: the size, pictures included, from which on more are refused. They are files
        of the temporary folder.
    start_timeout_seconds: longest silence of a starting process before it is killed; a model that
        loads for longer keeps reporting.
    heartbeat_timeout_seconds: longest silence of a running process before it counts as stuck, is
        killed and replaced.
    restart_budget: restarts of the inference process within restart_window_seconds; beyond it the
        service ends with an error, for whatever runs it to decide.
    restart_window_seconds: the span over which restart_budget counts.
    thread_wait: how the engine's CPU threads wait for each other: `passive` sleeps, `bounded`
        spins briefly, `active` spins and needs cores of its own; `auto` is `bounded`, the quickest
        beside busy neighbours.
    log_level: least severe event to log: `debug`, `info`, `warning` or `error`.
    log_format: `json`, `console`, or `auto`: `console` on a terminal.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8000
    workers: Count | None = None
    image_processes: Count | None = None
    max_body_bytes: Count = 64 * 1024 * 1024
    request_timeout_seconds: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    keep_alive_seconds: Count = 75
    drain_seconds: Seconds = 30.0
    shutdown_delay_seconds: Seconds = 0.0
    max_requests_per_worker: Count | None = None
    resume_seconds: Seconds = 30.0
    max_resumable_streams: Size = 256
    max_resumable_bytes: Size = 1024 * 1024 * 1024
    start_timeout_seconds: Annotated[float, msgspec.Meta(gt=0)] = 300.0
    heartbeat_timeout_seconds: Annotated[float, msgspec.Meta(ge=5)] = 30.0
    restart_budget: Annotated[int, msgspec.Meta(ge=0)] = 5
    restart_window_seconds: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    thread_wait: ThreadWait = "auto"
    log_level: LogLevel = "info"
    log_format: LogFormat = "auto"
    engine: EngineConfig = EngineConfig()
    fetch: FetchSettings = FetchSettings()
    files: FileSettings = FileSettings()
    media: MediaLimits = MediaLimits()
    access: AccessSettings = AccessSettings()
    connections: ConnectionLimits = ConnectionLimits()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()

    @property
    def num_workers(self) -> int:
        """Web workers to run."""
        return self.workers or min(_DEFAULT_MAX_WORKERS, usable_cores())

    @property
    def num_image_processes(self) -> int:
        """Image processes of each web worker."""
        share = usable_cores() // self.num_workers
        return self.image_processes or max(1, min(_MAX_IMAGE_PROCESSES_PER_WORKER, share))


def usable_cores() -> int:
    """Cores this process may use: its affinity, cut by a container's CPU limit."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CGROUP_CPU_LIMIT.read_text().split()
    except (OSError, ValueError):
        return cores
    if quota == "max":
        return cores
    return max(1, min(cores, math.floor(int(quota) / int(period))))
