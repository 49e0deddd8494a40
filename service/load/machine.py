"""What the figures were measured on: every report says it."""

import os
import platform
import shlex
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

_LOOK_SECONDS = 0.5
# /proc/stat counts a processor's time in ten kinds; these two are idle.
_IDLE_KINDS = (3, 4)


def facts(measured: Mapping[str, str], command: Sequence[str]) -> dict[str, str]:
    """Describe the machine, what is measured, and the command."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return {
        "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, "
        f"{platform.system()} {platform.release()}",
        **measured,
        "command": shlex.join(command),
        "time": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load at start": f"{os.getloadavg()[0]:.2f}, {_busy_share():.0%} of the CPU",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _busy_share() -> float:
    """Look for a moment at how busy all processors are, from 0 to 1."""
    before = _processor_times()
    time.sleep(_LOOK_SECONDS)
    spent = [after - earlier for earlier, after in zip(before, _processor_times(), strict=True)]
    return 1 - sum(spent[kind] for kind in _IDLE_KINDS) / max(sum(spent), 1)


def _processor_times() -> list[int]:
    line = Path("/proc/stat").read_text().partition("\n")[0]
    return [int(count) for count in line.split()[1:9]]  # the last two are counted twice
