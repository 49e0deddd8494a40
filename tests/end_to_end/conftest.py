"""The whole service as an operator runs it: `loupe serve` with the demo model, on a free port."""

import base64
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image, ImageDraw

# A running service is what tests/faults breaks and tests here use.
sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))

from running_service import PATIENCE_SECONDS, RunningService, wait_until

GREEDY = {"temperature": 0.1, "top_k": 1, "repetition_penalty": 1.0, "seed": 1}
COLORS = {"red": "#ff0000", "blue": "#0000ff", "green": "#00ff00"}


@pytest.fixture(scope="session", name="wait_until")
def wait_until_fixture() -> Callable[..., float]:
    return wait_until


@pytest.fixture(scope="session")
def start_service(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., RunningService]]:
    """Start services of one's own: `start_service("--workers", "1")`."""
    services: list[RunningService] = []

    def start(*arguments: str) -> RunningService:
        service = RunningService(tmp_path_factory.mktemp("service"), *arguments)
        services.append(service)
        service.wait_until_ready()
        return service

    yield start
    for service in services:
        service.end()


@pytest.fixture(scope="session")
def service(start_service: Callable[..., RunningService]) -> RunningService:
    """One service of four web workers for the whole run; who breaks it waits until it is whole."""
    return start_service("--workers", "4")


@pytest.fixture
def client(service: RunningService) -> Iterator[httpx.Client]:
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
def counted_to_30() -> str:
    """What the demo model says to "Count from 1 to 30"."""
    return ", ".join(str(number) for number in range(1, 31))


@pytest.fixture(scope="session")
def events() -> Callable[[httpx.Response], list[dict[str, object]]]:
    """Read a whole event stream."""

    def read(response: httpx.Response) -> list[dict[str, object]]:
        assert response.headers["content-type"].startswith("text/event-stream")
        frames = response.read().decode().split("\n\n")
        return [json.loads(frame[6:]) for frame in frames if frame.startswith("data: ")]

    return read
