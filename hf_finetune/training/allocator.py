"""Memory that is freed is kept for the next step, on the CPU too."""

from __future__ import annotations

import ctypes
import functools
import os
import platform

# of <malloc.h>
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_LARGEST, _PADDING = 2**31 - 1, 64 * 2**20


@functools.cache
def keep_freed_memory() -> bool:
    """Let the C library keep the memory that tensors free, as PyTorch's own allocator does on a GPU, and return whether it does.

    glibc gives every block above 32 MiB back to the system when it is freed. A step of a convolutional network frees and takes gigabytes
    of activations, and the system clears every page of them anew, which can take as long as the arithmetic. The setting holds for the
    whole process until it ends. Nothing is done for another C library, or where the environment sets `MALLOC_*` or `LD_PRELOAD`.
    """
    chosen = any(name.startswith("MALLOC_") or name in ("LD_PRELOAD", "GLIBC_TUNABLES") for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, value) == 1 for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, _PADDING)))
