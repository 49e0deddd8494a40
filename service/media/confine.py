"""Limits that a decoder process puts on itself, so that a hostile picture harms only its own."""

import math
import resource
import time
from collections.abc import Generator
from contextlib import contextmanager


def limit_memory(max_bytes: int) -> None:
    """Bound this process's memory for good: over it an allocation fails, as MemoryError."""
    # A core file would hold a client's picture.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_DATA, max_bytes)


@contextmanager
def cpu_limited(max_seconds: int) -> Generator[None]:
    """Bound the block's CPU time, to the second: over it the kernel ends the process (SIGXCPU).

    Nothing gentler works: no Python code runs inside a decoder that never returns.
    """
    _lower(resource.RLIMIT_CPU, math.ceil(time.process_time()) + max_seconds)
    try:
        yield
    finally:
        # What is left of it must not count against the next picture's arrival.
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))


def _lower(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (soft, hard))
