"""The service of `null_service.py` whose one web worker notes how long its event loop stands still.

Usage: probed_service.py PORT CHECKPOINT SAMPLES. At its end the worker writes a line per sample to
the file SAMPLES: the time, and the milliseconds that a sleep of one millisecond took too long, by
the clock and by the CPU time of the loop's own thread.
"""

import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import anyio
from null_service import run_null_engine

from inference.config import EngineConfig
from service.config import Settings
from service.metrics.worker_metrics import WorkerMetrics
from service.processes import worker
from service.processes.launcher import Entries
from service.processes.supervisor import serve

_SLEEP_SECONDS = 0.001


def run_probed_worker(control: Connection, **arguments: Any) -> None:
    """Run the real worker; what would note its memory every second notes its stalls instead."""
    worker._note_memory = _note_stalls
    worker.run_worker(control=control, **arguments)


async def _note_stalls(_: WorkerMetrics) -> None:
    samples: list[tuple[float, float, float]] = []
    try:
        while True:
            wall, cpu = time.perf_counter(), time.thread_time()
            await anyio.sleep(_SLEEP_SECONDS)
            stalled = time.perf_counter() - wall - _SLEEP_SECONDS
            samples.append((time.time(), 1000 * stalled, 1000 * (time.thread_time() - cpu)))
    finally:
        _write(samples)


def _write(samples: list[tuple[float, float, float]]) -> None:
    lines = (" ".join(f"{number:.4f}" for number in sample) for sample in samples)
    Path(os.environ["STALL_SAMPLES"]).write_text("\n".join(lines))


if __name__ == "__main__":
    os.environ["TOKENS_PER_DELTA"] = "0"
    os.environ["STALL_SAMPLES"] = sys.argv[3]
    settings = Settings(
        port=int(sys.argv[1]), workers=1, log_format="json", engine=EngineConfig(model=sys.argv[2])
    )
    raise SystemExit(serve(settings, Entries(worker=run_probed_worker, inference=run_null_engine)))
