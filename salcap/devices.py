"""Which devices torch has here, and waiting for them."""

from __future__ import annotations

from textwrap import shorten
from typing import Any

import torch


def check_device(device: str | int | torch.device | None) -> None:
    """Raise a ValueError that names the devices of this machine, unless ``device`` is one of them, or None."""
    if device is None:
        return
    try:
        usable = torch.empty(0, device=device).device.type != "meta"  # which holds no numbers
        words = "no numbers are kept there"
    except (RuntimeError, AssertionError, TypeError) as error:
        usable, words = False, shorten(str(error), 90)
    if not usable:
        raise ValueError(f"device {device!r} cannot be used ({words}); here are {', '.join(_devices())}")


def computing_device(model: Any) -> torch.device:
    """Where a model's inputs go: the device that computes, for a model spread over several or partly on disk."""
    device = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    return model.device if device is None else torch.device(device)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given, before a clock is read; kernels run behind the host."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _devices() -> list[str]:
    found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found
