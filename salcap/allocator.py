"""How the C library of a process of salcap's own keeps its memory."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
_TOP_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, for the whole process and from now on, in place of handing it to the kernel.

    On a CPU the tensors of each batch come and go; when each gets new pages, these cost more than half as much as the
    arithmetic (salcap-mini's encoder, 8 frames, two cores: 39 ms a frame against 25).

    Returns:
        False where another C library is in use, which goes on as it does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _TOP_PAD))
    accepted = [mallopt(name, value) == 1 for name, value in settings]
    return all(accepted)
