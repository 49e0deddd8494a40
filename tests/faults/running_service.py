"""A `loupe serve` of one's own, and everything that can be seen of it from outside.

Knows processes, files, the log and /metrics; no request. For tests and programs alike, so it does
not know pytest either.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
START_SECONDS = 240
PATIENCE_SECONDS = 60
# Restarts follow each other without a pause: what is measured is the recovery, not the patience.
NO_PAUSES = ("--restart-window-seconds", "1")


def checkpoint(model: str) -> str:
    """Name the `demo` model, or make one of tests/load/checkpoints.py and name its folder."""
    if model == "demo":
        return model
    folder = Path(tempfile.gettempdir()) / "loupe-bench" / model
    program = ROOT / "tests" / "load" / "checkpoints.py"
    subprocess.run([sys.executable, program, model, folder], check=True)
    return str(folder)


class Holdings(NamedTuple):
    """What a process holds. num_files: open descriptors. num_bytes: resident memory."""

    title: str
    num_files: int
    num_bytes: int


class RunningService:
    """A service, from its start to its end.

    url: known once it is ready. folder: of its log.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.url = ""
        environ = {name: text for name, text in os.environ.items() if name != "LOUPE_CONFIG"}
        environ.setdefault("LOUPE_MODEL", "demo")
        command = [sys.executable, "-m", "service", "serve", "--port", "0", "--log-format", "json"]
        with (folder / "stdout").open("wb") as output, (folder / "stderr").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *arguments],
                cwd=ROOT,
                stdout=output,
                stderr=log,
                start_new_session=True,
                env=environ,
            )

    def wait_until_ready(self) -> None:
        """Wait for the line an operator waits for; its address is this service's."""
        output = self.folder / "stdout"
        wait_until(
            lambda: "is ready" in output.read_text() or self.process.poll() is not None,
            START_SECONDS,
            self.log,
        )
        found = re.search(r"http://\S+", output.read_text())
        assert found is not None, self.log()
        self.url = found[0]

    def log(self) -> str:
        return (self.folder / "stderr").read_text()

    def events(self) -> list[dict[str, Any]]:
        """The log's lines."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def family(self) -> list[psutil.Process]:
        """The supervisor and all below it that lives."""
        supervisor = psutil.Process(self.process.pid)
        processes = [supervisor, *supervisor.children(recursive=True)]
        return [each for each in processes if _title(each)]

    def inference(self) -> psutil.Process:
        (process,) = self._children("loupe inference")
        return process

    def workers(self) -> list[psutil.Process]:
        return self._children("loupe worker")

    def decoders(self) -> list[psutil.Process]:
        below = [child for worker in self.workers() for child in worker.children()]
        return [child for child in below if "decoder_main" in _title(child)]

    def is_whole(self, num_workers: int) -> bool:
        """Tell whether every process is there and has said that it is ready."""
        ready = {event["pid"] for event in self.events() if event.get("message") == "process_ready"}
        children = [*self._children("loupe inference"), *self.workers()]
        return len(children) == 1 + num_workers and {child.pid for child in children} <= ready

    def holdings(self) -> list[Holdings]:
        """What every process holds now."""
        held: list[Holdings] = []
        for each in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                held.append(Holdings(_short(_title(each)), each.num_fds(), each.memory_info().rss))
        return held

    def runtime_folder(self) -> Path:
        """The folder that the processes share."""
        addresses = [
            connection.laddr
            for connection in self.inference().net_connections("unix")
            if connection.laddr
        ]
        return Path(str(addresses[0])).parent

    def num_connections(self) -> int:
        """How many connections of clients its workers have."""
        port = urlsplit(self.url).port
        return sum(
            connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == port
            for worker in self.workers()
            for connection in worker.net_connections("tcp")
        )

    def scrape(self) -> "Figures":
        """All of /metrics."""
        with urlopen(f"{self.url}/metrics", timeout=PATIENCE_SECONDS) as reply:
            text = reply.read().decode()
        return Figures(
            (_key(sample.name, sample.labels), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _children(self, title: str) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if _title(child).startswith(title)]


class Figures(dict[str, float]):
    """A scrape: the value of every sample, by its name and labels: `name{route=/v1/chat}`."""

    def sums(self, name: str) -> float:
        return sum(value for key, value in self.items() if key.partition("{")[0] == name)

    def requests(self) -> Counter[tuple[str, str]]:
        """Responses so far, by route and status."""
        found: Counter[tuple[str, str]] = Counter()
        for key, value in self.items():
            if match := re.fullmatch(r"loupe_requests_total\{route=(.+),status=(\d+)\}", key):
                found[match[1], match[2]] += int(value)
        return found


def wait_until(
    condition: Callable[[], bool],
    seconds: float = PATIENCE_SECONDS,
    explain: Callable[[], str] = str,
) -> float:
    """Wait for something; give the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds, explain()
        time.sleep(0.02)
    return time.monotonic() - began


def _key(name: str, labels: dict[str, str]) -> str:
    return name + "{" + ",".join(f"{key}={value}" for key, value in sorted(labels.items())) + "}"


def _title(process: psutil.Process) -> str:
    """A living process's title; empty for a dead one."""
    try:
        return " ".join(process.cmdline()).rstrip()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def _short(title: str) -> str:
    return "decoder" if "decoder_main" in title else title.removeprefix("loupe ")
