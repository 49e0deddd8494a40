"""Limits that a pool process puts on itself, so that a hostile picture harms only its own."""

import math
import os
import resource
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple, Unpack

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

_STDERR = 2


def run_confined(
    memory_bytes: int,
    cpu_seconds: int,
    function: Callable[[Unpack[Arguments]], Result],
    *arguments: *Arguments,
) -> Result:
    """Call a function within limits; what a pool process is asked to run."""
    with confined(memory_bytes=memory_bytes, cpu_seconds=cpu_seconds):
        return function(*arguments)


@contextmanager
def confined(*, memory_bytes: int, cpu_seconds: int) -> Generator[None]:
    """Bound this process's memory for good, and its CPU time within the block.

    Over the memory limit an allocation fails, as MemoryError. Over the CPU limit the kernel ends
    the process: no Python code runs inside a decoder that never returns, so nothing gentler works.
    """
    _silence_stderr()
    # A core file would hold a client's picture.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower_soft_limit(resource.RLIMIT_DATA, memory_bytes)
    _lower_soft_limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + cpu_seconds)
    try:
        yield
    finally:
        # The rest of a second spent here must not count against the next picture's arrival.
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))


def _lower_soft_limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (soft, hard))


def _silence_stderr() -> None:
    """Send what C libraries print to nowhere: the pool's owner does not read that pipe."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, _STDERR)
    os.close(null)
