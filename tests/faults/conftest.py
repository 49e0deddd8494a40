"""Services to be broken, one for the whole run where that does; no file is left behind by any."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# The modules here are shared by tests and programs: beside each other, no package.
sys.path.insert(0, str(Path(__file__).parent))

from running_service import NO_PAUSES, RunningService, wait_until

NUM_WORKERS = 2


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RunningService]]:
    """Start services of one's own: `start("--workers", "1")`."""
    services: list[RunningService] = []

    def begin(*arguments: str) -> RunningService:
        service = RunningService(tmp_path_factory.mktemp("service"), *arguments)
        services.append(service)
        service.wait_until_ready()
        return service

    yield begin
    for service in services:
        service.end()


@pytest.fixture(scope="session")
def shared(start: Callable[..., RunningService]) -> RunningService:
    """Two workers of one decoder each, quickly found stuck, restarted without a pause."""
    return start(
        "--workers", str(NUM_WORKERS), "--image-processes", "1", "--heartbeat-timeout-seconds", "6",
        "--restart-budget", "100", "--request-timeout-seconds", "60", *NO_PAUSES,
    )  # fmt: skip


@pytest.fixture
def service(shared: RunningService) -> Iterator[RunningService]:
    """The shared service, whole before and after."""
    wait_until(lambda: shared.is_whole(NUM_WORKERS), explain=shared.log)
    yield shared
    wait_until(lambda: shared.is_whole(NUM_WORKERS), explain=shared.log)
