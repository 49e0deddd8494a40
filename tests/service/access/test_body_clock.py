from typing import Any

import pytest

from service.errors import BodyTimeout
from service.http.body_clock import BodyClock
from service.http.connection_limits import ConnectionLimits

LIMITS = ConnectionLimits(body_timeout_seconds=60, min_body_bytes_per_second=1000)


@pytest.mark.parametrize(
    ("num_bytes", "seconds"),
    [
        pytest.param(0, 10, id="nothing-has-its-grace"),
        pytest.param(1, 10.001, id="a-byte-earns-a-millisecond"),
        pytest.param(30_000, 40, id="what-comes-earns-time"),
        pytest.param(10**9, 60, id="never-more-than-in-all"),
    ],
)
def test_time_is_earned_by_what_comes(num_bytes, seconds):
    clock = BodyClock(LIMITS, 100.0)
    clock.count(num_bytes)

    assert clock.ends_at() == pytest.approx(100.0 + seconds)


def test_a_client_who_had_to_wait_starts_anew():
    clock = BodyClock(LIMITS, 100.0)
    clock.count(5000)
    clock.restart(200.0)

    assert clock.ends_at() == 210.0


async def test_receive_raises_the_fault_and_only_for_what_is_missing():
    messages: list[Any] = [
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.request", "body": b"", "more_body": True},
        {"type": "http.request", "body": b"b", "more_body": False},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Any:
        return messages.pop(0)

    clock = BodyClock(LIMITS, 0.0)
    attended: Any = clock.attend(receive)
    first = await attended()
    clock.fault = BodyTimeout()
    with pytest.raises(Exception, match="took too long"):
        await attended()

    assert first["body"] == b"a"
    assert (await attended())["body"] == b"b"
    assert (await attended())["type"] == "http.disconnect"
