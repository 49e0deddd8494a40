"""Does beside the event loop what holds the interpreter for milliseconds, one such thing at a time.

A thread makes it no quicker, but lets the loop in between. Several at once would each take a turn
before the loop has its own.
"""

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

Result = TypeVar("Result")

_turns: RunVar[CapacityLimiter] = RunVar("aside_turns")


async def aside(work: Callable[[], Result]) -> Result:
    """Return what `work` returns, or raise what it raises, when its turn has come."""
    try:
        turns = _turns.get()
    except LookupError:
        turns = CapacityLimiter(1)
        _turns.set(turns)
    return await to_thread.run_sync(work, limiter=turns)
