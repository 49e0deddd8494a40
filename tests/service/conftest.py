"""What the web side's tests share: the checkpoint, and a scripted engine in its own process."""

import os
import runpy
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import cast

import msgspec
import pytest

from inference.protocol import ModelFacts

ROOT = Path(__file__).parent.parent.parent
PROGRAM = Path(__file__).parent / "null_engine.py"


class NullEngine:
    """Runs `null_engine.py`, and again when it dies, as the supervisor would.

    script: fields of its `Script`. life: how often it has died.
    """

    def __init__(self, checkpoint: Path, **script: object) -> None:
        # A path of a socket has at most 107 bytes; pytest's own folders may be deeper.
        self._folder = tempfile.TemporaryDirectory(prefix="loupe-")
        self._checkpoint = checkpoint
        self._script = msgspec.json.encode(script).decode()
        self._closing = Event()
        self.address = f"{self._folder.name}/engine"
        self.authkey = secrets.token_bytes(16)
        self.life = 0
        self.may_return = Event()
        self.may_return.set()
        self.process = self._start()
        self._watcher = Thread(target=self._watch)
        self._watcher.start()

    def kill(self) -> None:
        """End it as a kernel out of memory would."""
        self.process.kill()

    def close(self) -> None:
        self._closing.set()
        self.may_return.set()
        while self._watcher.is_alive():  # it may have started one more
            self.process.kill()
            self._watcher.join(0.1)
        self._folder.cleanup()

    def _start(self) -> subprocess.Popen[str]:
        arguments = [self.address, str(self._checkpoint), self._script, str(self.life)]
        return subprocess.Popen(
            [sys.executable, str(PROGRAM), *arguments],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "NULL_ENGINE_KEY": self.authkey.hex(),
            },
            stdout=subprocess.DEVNULL,
            text=True,
        )

    def _watch(self) -> None:
        while True:
            self.process.wait()
            self.may_return.wait()
            if self._closing.is_set():
                return
            self.life += 1
            self.process = self._start()


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The embedded demo checkpoint, or the one LOUPE_MODEL names."""
    return Path(os.environ.get("LOUPE_MODEL", ROOT / "inference/demo/checkpoint"))


@pytest.fixture
def null_engine(checkpoint: Path) -> Iterator[Callable[..., NullEngine]]:
    """Make scripted engines: `null_engine(tokens_per_delta=4, fault="die", fault_after=3)`."""
    engines: list[NullEngine] = []

    def start(**script: object) -> NullEngine:
        engines.append(NullEngine(checkpoint, **script))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def read_model_facts() -> Callable[[Path], ModelFacts]:
    """Give `null_engine.py`'s reader of a checkpoint's facts."""
    return cast("Callable[[Path], ModelFacts]", runpy.run_path(str(PROGRAM))["model_facts"])
