"""A pipe to a process that may stand still: whoever reads or writes waits until a deadline only.

Knows descriptors and the clock; nothing of what is said.
"""

import io
import math
import os
import select
import time
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class TimedPipe(io.FileIO):
    """One end of a pipe, at which nobody else reads or writes; the descriptor stays the pipe's.

    deadline: of the monotonic clock. After it nothing is read or written.
    """

    def __init__(self, pipe: BinaryIO) -> None:
        super().__init__(pipe.fileno(), "wb" if pipe.writable() else "rb", closefd=False)
        os.set_blocking(self.fileno(), False)
        self.deadline = math.inf

    def readinto(self, buffer: "WriteableBuffer") -> int | None:
        """Wait for some bytes; 0 is the end.

        Raises:
            TimeoutError: none came in time.
        """
        self._wait(select.POLLIN)
        return super().readinto(buffer)

    def write(self, content: "ReadableBuffer") -> int:
        """Write all of it.

        Raises:
            TimeoutError: nobody read it in time.
        """
        rest = memoryview(content)
        while rest:
            self._wait(select.POLLOUT)
            rest = rest[super().write(rest) :]
        return memoryview(content).nbytes

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self.fileno(), event)
        left = self.deadline - time.monotonic()
        if not poll.poll(None if left == math.inf else max(0.0, left) * 1000):
            raise TimeoutError
