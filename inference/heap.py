"""How this process's allocator treats freed memory; matters on a CPU, where tensors live there.

A step frees and allocates the same megabytes again and again. By default glibc hands large blocks
back to the kernel at once, which then zeroes fresh pages: measured, an RMS norm over 800 tokens
takes 25 times as long. Kept, they stay within what the largest step so far needed.
"""

import contextlib
import ctypes
import gc

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# Activations lie below it; weights and the KV pool, which are never freed, may lie above.
_MAX_KEPT_BLOCK_BYTES = 256 * 1024 * 1024
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let the C library keep freed blocks for the next step; where it is not glibc, do nothing."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MAX_KEPT_BLOCK_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def freeze_objects() -> None:
    """Take what stands after the start from the garbage collector's sight.

    A full collection would walk all that torch and transformers have made, between two steps.
    """
    gc.collect()
    gc.freeze()
