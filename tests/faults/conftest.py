"""Services to be broken, one for the whole run where that does; no file is left behind by any."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# The modules here are shared by tests and programs: beside each other, no package.
sys.path.insert(0, str(Path(__file__).parent))

from rest import Rest, rest_of
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
    """Two workers of one decoder each, quickly found stuck, restarted without a pause.

    A decoder has 13 s by the clock, and less memory than the largest pictures need.
    """
    return start(
        "--workers", str(NUM_WORKERS), "--image-processes", "1", "--heartbeat-timeout-seconds", "6",
        "--restart-budget", "100", "--request-timeout-seconds", "60", *NO_PAUSES,
        "--max-decode-cpu-seconds", "1", "--max-decode-memory-bytes", str(96 * 1024 * 1024),
    )  # fmt: skip


@pytest.fixture(scope="session")
def at_rest(shared: RunningService) -> Rest:
    """What the shared service holds when nothing runs."""
    return rest_of(shared)


@pytest.fixture
def service(shared: RunningService) -> Iterator[RunningService]:
    """The shared service, whole before and after."""
    wait_until(lambda: shared.is_whole(NUM_WORKERS), explain=shared.log)
    yield shared
    wait_until(lambda: shared.is_whole(NUM_WORKERS), explain=shared.log)
