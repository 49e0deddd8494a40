"""The whole service as an operator runs it: `loupe serve` with the demo model, on a free port."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[2]
START_SECONDS = 240
PATIENCE_SECONDS = 60
GREEDY = {"temperature": 0.1, "top_k": 1, "repetition_penalty": 1.0, "seed": 1}
COLORS = {"red": "#ff0000", "blue": "#0000ff", "green": "#00ff00"}


class Service:
    """A running `loupe serve`, and a look at its processes."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._output = folder / "stdout"
        self._log = folder / "stderr"
        environ = {name: text for name, text in os.environ.items() if name != "LOUPE_CONFIG"}
        with self._output.open("wb") as output, self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve", "--port", "0", *arguments],
                cwd=ROOT,
                stdout=output,
                stderr=log,
                start_new_session=True,
                env=environ | {"LOUPE_MODEL": os.environ.get("LOUPE_MODEL", "demo")},
            )
        self.url = ""

    def wait_until_ready(self) -> None:
        """Wait for the line an operator waits for; its address is this service's."""
        wait_until(
            lambda: "is ready" in self._output.read_text() or self.process.poll() is not None,
            seconds=START_SECONDS,
            explain=self.log,
        )
        found = re.search(r"http://\S+", self._output.read_text())
        assert found is not None, self.log()
        self.url = found[0]

    def log(self) -> str:
        return self._log.read_text()

    def processes(self) -> list[psutil.Process]:
        """The supervisor and everything below it that lives."""
        supervisor = psutil.Process(self.process.pid)
        family = [supervisor, *supervisor.children(recursive=True)]
        return [each for each in family if each.status() != psutil.STATUS_ZOMBIE]

    def children(self, title: str) -> list[psutil.Process]:
        """The supervisor's living children whose title begins so."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if _title(child).startswith(title)]

    def inference(self) -> psutil.Process:
        (process,) = self.children("loupe inference")
        return process

    def workers(self) -> list[psutil.Process]:
        return self.children("loupe worker")

    def image_processes(self) -> list[psutil.Process]:
        return [child for worker in self.workers() for child in worker.children()]

    def is_whole(self, num_workers: int) -> bool:
        """Every process is there and has said that it is ready."""
        events = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        ready = {event["pid"] for event in events if event["message"] == "process_ready"}
        children = [*self.children("loupe inference"), *self.workers()]
        return len(children) == 1 + num_workers and {child.pid for child in children} <= ready

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).rstrip()
    except psutil.NoSuchProcess:
        return ""


def wait_until(
    condition: Callable[[], bool],
    *,
    seconds: float = PATIENCE_SECONDS,
    explain: Callable[[], str] = str,
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.05)


@pytest.fixture(scope="session", name="wait_until")
def wait_until_fixture() -> Callable[..., None]:
    return wait_until


@pytest.fixture(scope="session")
def start_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Service]]:
    """Start services of one's own: `start_service("--workers", "1")`."""
    services: list[Service] = []

    def start(*arguments: str) -> Service:
        service = Service(tmp_path_factory.mktemp("service"), *arguments)
        services.append(service)
        service.wait_until_ready()
        return service

    yield start
    for service in services:
        service.end()


@pytest.fixture(scope="session")
def service(start_service: Callable[..., Service]) -> Service:
    """One service of four web workers for the whole run; who breaks it waits until it is whole."""
    return start_service("--workers", "4")


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """Draw `picture("red", "circle")`: one shape in the middle of a white PNG."""

    def draw(color: str, shape: str, size: tuple[int, int] = (224, 224)) -> bytes:
        image = Image.new("RGB", size, "white")
        width, height = size
        radius = min(size) * 0.3
        box = (width / 2 - radius, height / 2 - radius, width / 2 + radius, height / 2 + radius)
        pen = ImageDraw.Draw(image)
        {"circle": pen.ellipse, "square": pen.rectangle}[shape](box, fill=COLORS[color])
        encoded = io.BytesIO()
        image.save(encoded, "PNG")
        return encoded.getvalue()

    return draw


@pytest.fixture(scope="session")
def ask() -> Callable[..., dict[str, object]]:
    """Make a greedy request's JSON: `ask("What is in this image?", png, png)`."""

    def make(text: str, *images: bytes) -> dict[str, object]:
        question: dict[str, object] = {"text": text, **GREEDY}
        if not images:
            return question | {"input_type": "text_only"}
        return question | {"images": [base64.b64encode(image).decode() for image in images]}

    return make


@pytest.fixture(scope="session")
def events() -> Callable[[httpx.Response], list[dict[str, object]]]:
    """Read a whole event stream."""

    def read(response: httpx.Response) -> list[dict[str, object]]:
        assert response.headers["content-type"].startswith("text/event-stream")
        frames = response.read().decode().split("\n\n")
        return [json.loads(frame[6:]) for frame in frames if frame.startswith("data: ")]

    return read
