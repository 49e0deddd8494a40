"""What a service holds when nothing runs: as much after a fault as before.

Knows processes, descriptors and files; not what happened to them.
"""

import asyncio
from typing import NamedTuple

from asking import ask_all
from audit import files_of, leftovers
from mixture import mixed
from running_service import RunningService, wait_until


class Rest(NamedTuple):
    """A service at rest. titles: of its processes. files: of its runtime folder."""

    titles: list[str]
    files: list[str]
    num_descriptors: int


def rest_of(service: RunningService) -> Rest:
    """Look at a service after every part of it has been used once."""
    asyncio.run(ask_all(service.url, mixed(60), "warm", concurrency=10))
    leftovers(service)
    return Rest(_titles(service), files_of(service), _num_descriptors(service))


def check_rest(service: RunningService, at_rest: Rest) -> None:
    """Nothing runs, nothing is held, and there are as many processes and files as before."""
    asyncio.run(ask_all(service.url, mixed(30, 9000), "after", concurrency=6))
    leftovers(service)
    wait_until(lambda: _titles(service) == at_rest.titles, 20, lambda: str(_titles(service)))
    assert files_of(service) == at_rest.files
    # A few come and go with threads, idle clients and the log; a leak per request would be tens.
    most = at_rest.num_descriptors + 8
    wait_until(lambda: _num_descriptors(service) <= most, 20, lambda: str(service.holdings()))


def _titles(service: RunningService) -> list[str]:
    return sorted(each.title for each in service.holdings())


def _num_descriptors(service: RunningService) -> int:
    return sum(each.num_files for each in service.holdings())
