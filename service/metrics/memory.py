"""How much main memory processes hold, as the kernel tells it. Only this: no limits, no policy."""

import contextlib
import os
from pathlib import Path

_PROCESSES = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Tell what this process holds; 0 where the kernel does not say."""
    return _resident_bytes("self")


def children_resident_bytes() -> int:
    """Tell what this process's children hold together."""
    return sum(_resident_bytes(pid) for pid in _children())


def _resident_bytes(pid: str) -> int:
    try:
        pages = (_PROCESSES / pid / "statm").read_text().split()[1]
    except OSError:  # not Linux, or it has just ended
        return 0
    return int(pages) * _PAGE_BYTES


def _children() -> set[str]:
    """List the children of every thread: the kernel keeps them apart."""
    children: set[str] = set()
    for thread in _PROCESSES.glob("self/task/*/children"):
        with contextlib.suppress(OSError):
            children.update(thread.read_text().split())
    return children
