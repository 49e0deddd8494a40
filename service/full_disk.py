"""A disk that is full, told as the client's error. Knows which errors of the system mean that."""

import contextlib
import errno
from collections.abc import Generator

from service.errors import StorageFull

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def full_disk_told() -> Generator[None]:
    """Raise StorageFull where the block fails for want of room."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull from None
        raise
