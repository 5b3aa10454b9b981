"""What the benchmarks measure with: percentiles, and memory at its peak."""

from __future__ import annotations

import ctypes
import gc
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """``p50`` and ``p95``: each the smallest value that such a share of all does not exceed."""
    ordered = sorted(values)
    return {f"p{share}": ordered[math.ceil(share / 100 * len(ordered)) - 1] for share in (50, 95)}


def peak_rise_mib(run: Callable[[], object], device: torch.device) -> float | None:
    """How far memory rises while ``run`` runs: CUDA's on such a device, else this process's.

    None where the system does not tell.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with suppress(AttributeError, OSError):  # of the GNU C library: what was freed goes back to the system
        ctypes.CDLL(None).malloc_trim(0)
    told, now = forget_peak_memory(), memory_mib("VmRSS")
    run()
    peak = memory_mib("VmHWM")
    return peak - now if told and now is not None and peak is not None else None


def forget_peak_memory() -> bool:
    """Let "VmHWM" begin anew; False on systems that cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def memory_mib(field_name: str) -> float | None:
    """Resident memory of this process: "VmRSS" now, "VmHWM" at its peak; None on systems without /proc."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(field_name))
