"""The device the model runs on, and how much memory is free there.

Reads the kernel's own figures; a container's limit counts when it is the smaller one. torch is
imported only where a GPU has to be asked.
"""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


class DeviceError(Exception):
    """The asked-for device does not exist here; the message is for a person."""


class DeviceMemory(NamedTuple):
    """What a device has; free counts what can be had without pushing others out."""

    free_bytes: int
    total_bytes: int


class _CgroupFiles(NamedTuple):
    """Where one version of control groups says the limit, the use and the reclaimable part."""

    limit: str
    used: str
    reclaimable: str


_CGROUP_V2 = _CgroupFiles("memory.max", "memory.current", "inactive_file")
_CGROUP_V1 = _CgroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def resolve_device(name: str) -> str:
    """Turn `auto` into `cuda` or `cpu`, and check that a named device exists.

    Raises:
        DeviceError: there is no such device here.
    """
    kind, colon, index = name.partition(":")
    if name == "cpu":
        return name
    if name != "auto" and (kind != "cuda" or (colon and not index.isdecimal())):
        raise DeviceError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:<number>")
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not torch.cuda.is_available():
        raise DeviceError(f"device {name!r}: no usable GPU here; use --device cpu")
    if int(index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {name!r}: this machine has {torch.cuda.device_count()} GPU(s)")
    return name


def device_memory(device: str, *, spread: bool = False) -> DeviceMemory:
    """Ask how much memory a resolved device has; `spread` adds up all visible GPUs."""
    if device == "cpu":
        return host_memory()
    import torch

    gpus = range(torch.cuda.device_count()) if spread else [torch.device(device)]
    sizes = [torch.cuda.mem_get_info(gpu) for gpu in gpus]
    return DeviceMemory(sum(free for free, _ in sizes), sum(total for _, total in sizes))


def host_memory(proc: Path = _PROC, cgroup: Path = _CGROUP) -> DeviceMemory:
    """Read what this process can still take: the machine's rest or its container's."""
    memory = _machine_memory(proc)
    for limit in _cgroup_memories(proc, cgroup):
        memory = DeviceMemory(
            min(memory.free_bytes, limit.free_bytes), min(memory.total_bytes, limit.total_bytes)
        )
    return memory


def resident_bytes(proc: Path = _PROC) -> int:
    """Ask how much of this process lies in the machine's memory; 0 where that is not told."""
    try:
        pages = int((proc / "self" / "statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class MemoryWatch:
    """Says whether free memory is so low that new work must be refused.

    Watches the host, where pictures wait, and the model's GPU. Cheap to ask at every step: it reads
    at most once an interval and remembers.
    """

    def __init__(
        self,
        device: str = "cpu",
        *,
        reads: Sequence[Callable[[], DeviceMemory]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        interval_seconds: float = 1.0,
    ) -> None:
        if reads is None:
            reads = [host_memory] if device == "cpu" else [host_memory, partial(_gpu_rest, device)]
        self._watched = [(read, default_brink(read())) for read in reads]
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._next_reading = clock()
        self._is_short = False

    def is_short(self) -> bool:
        """Whether free memory was under the brink at the last reading."""
        now = self._clock()
        if now >= self._next_reading:
            self._next_reading = now + self._interval_seconds
            self._is_short = any(read().free_bytes < brink for read, brink in self._watched)
        return self._is_short


def default_brink(memory: DeviceMemory) -> int:
    """Below this many free bytes the kernel's out-of-memory killer is near.

    2 % of the memory, at least 64 MiB and at most 1 GiB: a few requests' pictures.
    """
    return min(max(memory.total_bytes // 50, 64 * 1024**2), 1024**3)


def _gpu_rest(device: str) -> DeviceMemory:
    """What a GPU has for this process: what is free, and what torch's allocator keeps unused."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return DeviceMemory(free + kept, total)


def _machine_memory(proc: Path) -> DeviceMemory:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except FileNotFoundError:  # not Linux: a developer's machine, where all of it must do
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return DeviceMemory(total, total)
    kibibytes = {name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)}
    return DeviceMemory(kibibytes["MemAvailable"] * 1024, kibibytes["MemTotal"] * 1024)


def _cgroup_memories(proc: Path, cgroup: Path) -> list[DeviceMemory]:
    """The limits on this process, its own group's and every parent's; none where unlimited."""
    try:
        entries = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    memories: list[DeviceMemory] = []
    for entry in entries:
        _, controllers, path = entry.split(":", 2)
        if controllers == "":
            root, files = cgroup, _CGROUP_V2
        elif "memory" in controllers.split(","):
            root, files = cgroup / "memory", _CGROUP_V1
        else:
            continue
        # Inside a container the path may be the host's and not exist here; the root then holds.
        group = root / path.lstrip("/")
        folders = [group, *group.parents]
        for folder in folders[: folders.index(root) + 1]:
            limit = _cgroup_memory(folder, files)
            if limit is not None:
                memories.append(limit)
    return memories


def _cgroup_memory(folder: Path, files: _CgroupFiles) -> DeviceMemory | None:
    try:
        limit = int((folder / files.limit).read_text())
        used = int((folder / files.used).read_text())
        statistics = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # not limited here: no such file, or the word `max`
        return None
    counts = dict(line.split(maxsplit=1) for line in statistics)
    # Cached file pages are given back before anyone is killed, as in MemAvailable.
    held = max(used - int(counts.get(files.reclaimable, 0)), 0)
    return DeviceMemory(max(limit - held, 0), limit)
