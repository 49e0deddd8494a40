import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

NULL_SERVER = Path(__file__).parents[2] / "load" / "null_server.py"


@pytest.fixture
def null_server() -> Iterator[Callable[[str], str]]:
    """Start servers with a fault: `null_server("short")` gives the URL."""
    processes: list[subprocess.Popen[str]] = []

    def start(fault: str) -> str:
        process = subprocess.Popen(
            [sys.executable, NULL_SERVER, "0", fault], stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout is not None
        return f"http://127.0.0.1:{process.stdout.readline().strip()}"

    yield start
    for process in processes:
        process.kill()
        process.communicate()
