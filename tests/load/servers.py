"""The servers that can be measured: how each is started, asked and watched.

A peer runs in an environment of its own, which the caller names; Loupe runs from this checkout.
"""

import contextlib
import http.client
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

import psutil
from checkout import HERE, ROOT

START_SECONDS = 900
_STOP_SECONDS = 60
_MIB = 1024 * 1024


class Server(NamedTuple):
    """One server, not yet running. `{port}` and `{model}` in its command are filled in.

    command: empty for the engine alone, which has no HTTP. ready_path: answers 200 once requests
    are answered. rests: it starts so slowly that it is stopped in its tracks between its turns and
    not ended. packages: whose versions are told.
    """

    name: str
    command: tuple[str, ...]
    dialect: str
    ready_path: str
    packages: tuple[str, ...]
    environ: Mapping[str, str] = {}
    rests: bool = False
    python: str = sys.executable


class Memory(NamedTuple):
    """Resident memory of one process in MiB; shared counts a page by how many share it."""

    process: str
    resident: float
    shared: float


def server_named(
    name: str, venvs: Mapping[str, Path], loupe_dialect: str, loupe_arguments: str
) -> Server:
    """Describe a server.

    Raises:
        LookupError: no such server, or no environment was named for it.
    """
    base = ("torch", "transformers")
    loupe = (
        sys.executable, "-m", "service", "serve", "--port", "{port}", "--model", "{model}",
        "--served-model-name", "{model}",
    )  # fmt: skip
    match name:
        case "loupe":
            command = (*loupe, *shlex.split(loupe_arguments))
            return Server(name, command, loupe_dialect, "/health/ready", (*base, "litestar"))
        case "direct":
            return Server(name, (), "none", "", base)
        case "null":
            command = (sys.executable, str(HERE / "null_server.py"), "{port}")
            return Server(name, command, "native", "/health/ready", ("httptools",))
    if name not in venvs:
        raise LookupError(f"{name}: no such server, or name its environment: --peer {name}=VENV")
    programs = venvs[name] / "bin"
    python = str(programs / "python")
    if not Path(python).exists():
        raise LookupError(f"{name}: {python} is not there")
    match name:
        case "recipe":
            command = (python, str(HERE / "peers" / "recipe.py"), "{model}", "{port}")
            dialect, packages = "native", (*base, "fastapi")
        case "litserve":
            command = (python, str(HERE / "peers" / "litserve_batches.py"), "{model}", "{port}")
            dialect, packages = "native-whole", (*base, "litserve")
        case "transformers":
            command = (
                str(programs / "transformers"), "serve", "{model}", "--port", "{port}",
                "--device", "cpu", "--dtype", "bfloat16",
            )  # fmt: skip
            dialect, packages = "openai-plain", base
        case "vllm":
            return _vllm(programs, base)
        case _:
            raise LookupError(f"{name}: no such server")
    ready = "/v1/health" if name == "recipe" else "/health"
    return Server(name, command, dialect, ready, packages, _PASSIVE, python=python)


# Spinning threads would measure the load generator's share of the cores, not the server.
_PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}


def _vllm(programs: Path, base: tuple[str, ...]) -> Server:
    command = (
        str(programs / "vllm"), "serve", "{model}", "--port", "{port}", "--host", "127.0.0.1",
        "--dtype", "bfloat16", "--max-model-len", "4096",
        "--limit-mm-per-prompt", '{"image": 8}',
        # Its profile of one picture of 65,536 patches takes a CPU most of ten minutes.
        "--skip-mm-profiling",
    )  # fmt: skip
    cores = sorted(os.sched_getaffinity(0))
    environ = {
        **_PASSIVE,
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}-{cores[-1]}",
    }
    return Server(
        "vllm", command, "openai", "/health", (*base, "vllm-cpu"), environ, True,
        str(programs / "python"),
    )  # fmt: skip


class ServerAbsent(Exception):
    """A server does not start; the message names its log."""


class Running:
    """A started server.

    ready_seconds: from its start to readiness. load_before: the machine's, when it started.
    """

    def __init__(self, server: Server, model: Path, log: Path) -> None:
        self.server = server
        self.model = model
        self.load_before = os.getloadavg()[0]
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [
            word.replace("{port}", str(port)).replace("{model}", str(model))
            for word in server.command
        ]
        self._log = log.open("ab")
        started = time.perf_counter()
        self._process = _spawn(command, server.environ, self._log)
        self.ready_seconds = self._wait_until_ready(port, started)

    def memory(self) -> list[Memory]:
        """Look at all of its processes."""
        found = []
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                memory = process.memory_full_info()
                found.append(Memory(_title(process), memory.rss / _MIB, memory.pss / _MIB))
        return found

    def rest(self) -> None:
        for process in self.family():
            process.suspend()

    def resume(self) -> None:
        for process in reversed(self.family()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def stop(self) -> None:
        """End it as an operator would, and whatever it leaves behind."""
        family = self.family()
        self.resume()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._log.close()

    def family(self) -> list[psutil.Process]:
        """List its processes, the first one first: all of the session that it began."""
        return [
            process
            for process in psutil.process_iter()
            if _session(process.pid) == self._process.pid
            and process.status() != psutil.STATUS_ZOMBIE
        ]

    def _wait_until_ready(self, port: int, started: float) -> float:
        while not _answers(port, self.server.ready_path):
            seconds = time.perf_counter() - started
            if self._process.poll() is not None or seconds > START_SECONDS:
                self.stop()
                raise ServerAbsent(f"{self.server.name} does not start; see {self._log.name}")
            time.sleep(0.02)
        return time.perf_counter() - started


def versions(server: Server) -> dict[str, str]:
    """Ask a server's own environment what it runs."""
    program = (
        "import sys, importlib.metadata as m\n"
        "print(sys.version.split()[0], *(m.version(name) for name in sys.argv[1:]))"
    )
    finished = subprocess.run(
        [server.python, "-c", program, *server.packages],
        capture_output=True,
        text=True,
        check=False,
    )
    names = ("python", *server.packages)
    return dict(zip(names, finished.stdout.split(), strict=False))


def clean_environ(additions: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without what would set a server up by stealth."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("LOUPE_")}
    return kept | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | dict(additions)


def _spawn(
    command: list[str], environ: Mapping[str, str], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=clean_environ(environ),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _title(process: psutil.Process) -> str:
    words = process.cmdline()
    return " ".join(Path(word).name for word in words[:4]).strip()[:40] or process.name()
