"""What a result rests on: versions and hardware."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from salcap import __version__
from salcap.doctor import java_version, package_version

_PACKAGES = ("transformers", "av", "numpy", "pycocoevalcap")


def versions() -> dict[str, str | None]:
    """Of salcap, Python, Java and the packages that decide captions and scores; None for what is not installed.

    torch's with its build, such as 2.13.0+cpu, which the package's own metadata may lack.
    """
    packages = {"torch": str(torch.__version__), **{name: package_version(name) for name in _PACKAGES}}
    return {"salcap": __version__, "python": sys.version.split()[0], **packages, "java": java_version()}


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine, and the device that captions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": name,
    }


def _processor() -> str:
    """The processor's name as Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
