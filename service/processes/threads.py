"""How the engine's CPU threads are set up, through variables that their library reads as it loads.

It decides for the inference process alone; a variable the operator has set is left as it is.
"""

import contextlib
import os
from collections.abc import Generator, Mapping
from typing import NamedTuple

from service.config import Settings, ThreadWait, usable_cores

# Spinning threads keep a core from whoever could do the work they wait for: beside one busy
# process on two cores a decode step took 8 times as long with the default spin as asleep. A spin of
# some microseconds costs a neighbour little and saves most wake-ups.
_WAIT_VARIABLES: dict[ThreadWait, dict[str, str]] = {
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "bounded": {"GOMP_SPINCOUNT": "1000"},
    "active": {"OMP_WAIT_POLICY": "ACTIVE"},
}
_WAIT_NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


class ThreadPlan(NamedTuple):
    """Variables for the inference process, and the reason for a person."""

    variables: dict[str, str]
    reason: str


def plan_threads(settings: Settings, environ: Mapping[str, str]) -> ThreadPlan:
    """Choose the number of threads and how they wait."""
    variables: dict[str, str] = {}
    reasons: list[str] = []
    if "OMP_NUM_THREADS" in environ and settings.engine.num_threads is None:
        reasons.append(f"OMP_NUM_THREADS={environ['OMP_NUM_THREADS']}, as set")
    else:
        count = settings.engine.num_threads or usable_cores()
        variables["OMP_NUM_THREADS"] = str(count)
        chosen = "as set" if settings.engine.num_threads else "one per usable core"
        reasons.append(f"{count} {'thread' if count == 1 else 'threads'}, {chosen}")
    preset = [name for name in _WAIT_NAMES if name in environ]
    if preset:
        reasons.append(f"waiting as {', '.join(preset)} says")
    else:
        wait = "bounded" if settings.thread_wait == "auto" else settings.thread_wait
        variables |= _WAIT_VARIABLES[wait]
        chosen = (
            "as set"
            if settings.thread_wait != "auto"
            else "quick beside the web workers that share the cores"
        )
        reasons.append(f"waiting {wait}, {chosen}")
    return ThreadPlan(variables, "; ".join(reasons))


@contextlib.contextmanager
def variables_set(variables: Mapping[str, str]) -> Generator[None]:
    """Set variables for the processes that are started inside the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
