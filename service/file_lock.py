"""Files that are locked for as long as a process lives: whether somebody still cares for one.

The kernel lets such a lock go when its process ends, in whatever way; so what a dead process left
is known without anybody having written down that it died. Knows nothing of what the files are for.
"""

import fcntl
import os
from pathlib import Path


def is_held(path: Path) -> bool:
    """Tell whether a living process has locked a file for itself; a link is not followed.

    Raises:
        OSError: it cannot be opened; FileNotFoundError where it is not there.
    """
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        # Shared, so that those who only look are never taken for an owner by each other.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
