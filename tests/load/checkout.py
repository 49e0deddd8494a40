"""The checkout whose programs measure: its root, its commit, and how a program of it was called."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def commit() -> str:
    """Name the commit, and whether files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def program_line() -> list[str]:
    """Tell how this program was called, its path within the checkout."""
    path = Path(sys.argv[0]).resolve()
    program = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
    return ["python", str(program), *sys.argv[1:]]
