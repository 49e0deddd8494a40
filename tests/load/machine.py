"""What the figures were measured on: every report says it."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


def facts() -> dict[str, str]:
    """Describe the machine, the commit and the command."""
    memory = psutil.virtual_memory().total / 1024**3
    return {
        "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, "
        f"{platform.system()} {platform.release()}",
        "commit": _commit(),
        "command": shlex.join(["python", _relative(sys.argv[0]), *sys.argv[1:]]),
        "time": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load at start": f"{os.getloadavg()[0]:.2f}, {psutil.cpu_percent(0.5):.0f} % of the CPU",
    }


def _relative(program: str) -> str:
    path = Path(program).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"
