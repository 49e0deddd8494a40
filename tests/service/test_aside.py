import threading

import anyio
import pytest

from service.aside import aside


async def test_one_thing_at_a_time_beside_the_loop():
    loop_thread, busy, most = threading.get_ident(), [], []

    def work():
        assert threading.get_ident() != loop_thread
        busy.append(1)
        most.append(len(busy))
        threading.Event().wait(0.01)
        busy.pop()
        return len(most)

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(aside, work)
        assert await aside(work) > 0

    assert most == [1] * 6


async def test_what_goes_wrong_there_is_raised_here_and_blocks_nobody():
    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await aside(fail)
    assert await aside(lambda: 1) == 1
