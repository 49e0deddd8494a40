"""A short soak; `python tests/faults/soak.py` is the long one."""

import asyncio

import pytest
from audit import files_of, leftovers
from running_service import wait_until
from soak import SHORT_STREAMS, SMALL_POOLS, growth, soak

WARM_SECONDS = 4.0
# By requests, not by time: on busy cores a few seconds are too few of them.
WARM_REQUESTS = 1500
SECONDS = 9.0
# Pictures alone come to some 100 KB each as they are decoded, in hundreds of requests. In the
# inference process the allocator keeps what the largest step so far took.
MOST_MIB = {"inference": 100.0, "decoder": 15.0}
MOST_MIB_ELSEWHERE = 8.0


@pytest.mark.slow
def test_hundreds_of_pictures_departures_and_errors_leave_nothing_behind(start):
    service = start("--workers", "1", "--image-processes", "1", *SMALL_POOLS, *SHORT_STREAMS)
    warm = 0
    for seed in range(100, 112):
        warm += asyncio.run(soak(service, WARM_SECONDS, concurrency=8, seed=seed)).codes.total()
        if warm >= WARM_REQUESTS:
            break
    leftovers(service)
    num_files = {each.title: each.num_files for each in service.holdings()}

    course = asyncio.run(soak(service, SECONDS, concurrency=8, seed=3))
    leftovers(service)

    assert course.codes.total() > 100
    assert course.codes["200"] > course.codes.total() / 3
    assert course.codes.keys() & {"0", "500", "internal_error", "torn"} == set()
    assert course.codes["resumed"] > 10
    for each in growth(course.samples):
        risen = each.last_mib - each.first_mib
        assert risen < MOST_MIB.get(each.title, MOST_MIB_ELSEWHERE), each
    now = {each.title: each.num_files for each in service.holdings()}
    # A decoder whose client left was ended, and is there again with the next picture.
    assert now.keys() ^ num_files.keys() <= {"decoder"}
    assert all(now.get(title, 0) <= count + 4 for title, count in num_files.items()), now
    wait_until(lambda: files_of(service) == ["engine.sock", "lock"])  # streams are swept
    assert service.stop() == 0
