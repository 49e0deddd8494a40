"""One service under attack, and a neighbour whose questions it goes on answering."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

# The modules beside this one: tests have no packages.
sys.path.insert(0, str(Path(__file__).parent))

from attack import CANARY, Hostile, neighbour
from bad_files import RED
from origin import Origin
from running_service import RunningService

NUM_WORKERS = 2
LIMITS = {
    "max-images": 3,
    "max-body-bytes": 2_000_000,
    "max-image-bytes": 400_000,
    "max-total-bytes": 900_000,
    "max-document-pages": 4,
    "max-video-seconds": 2,
    "max-video-frames": 100,
    "fetch-timeout-seconds": 0.5,
    "fetch-private-hosts": "127.0.0.2",
}


@pytest.fixture(scope="session")
def origin() -> Iterator[Origin]:
    origin = Origin(RED, CANARY)
    yield origin
    origin.close()


@pytest.fixture(scope="session")
def attacked(
    start_service: Callable[..., RunningService], origin: Origin
) -> Iterator[RunningService]:
    flags = [word for name, value in LIMITS.items() for word in (f"--{name}", str(value))]
    ports = f"80,443,{origin.port}"
    service = start_service("--workers", str(NUM_WORKERS), "--fetch-ports", ports, *flags)
    yield service
    assert service.stop() == 0


@pytest.fixture(scope="module")
def hostile(attacked: RunningService, origin: Origin) -> Iterator[Hostile]:
    with httpx.Client(base_url=attacked.url, timeout=30) as client:
        model = client.get("/v1/models").json()["data"][0]["id"]
        with neighbour(attacked.url):
            yield Hostile(client, httpx.URL(attacked.url).port or 0, model, origin)
    assert "Unhandled error" not in attacked.log()
    assert attacked.is_whole(NUM_WORKERS), "a process was lost on the way"
