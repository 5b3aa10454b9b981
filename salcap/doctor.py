"""What this installation has: versions, Java, weights, plug-ins, and what to do where something is missing."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from salcap.hashing import file_sha256

_CORE = (
    *("torch", "transformers", "av", "numpy", "pycocoevalcap", "accelerate", "safetensors", "huggingface_hub"),
    *("typer", "rich", "pyyaml", "pillow"),
)
_WEIGHTS = Path(__file__).parent / "weights"
_EXTRAS = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "plots": "matplotlib",
    "demo": "gradio",
    "ray": "ray",
    "litert": "ai-edge-litert",
    "vlm": "torchvision",
}


def examine() -> dict[str, Any]:
    """Look at the installation without importing its heavy parts.

    Returns:
        A JSON-ready dictionary; ``problems`` lists what needs mending, each with what to do.
    """
    from salcap.saliency import list_saliency, saliency_errors

    core = {name: package_version(name) for name in _CORE}
    extras = {extra: package_version(package) for extra, package in _EXTRAS.items()}
    weights = bundled_weights()
    java = java_version()
    torchvision = _torchvision_problem()
    problems = [f"{name} is not installed: pip install salcap" for name, version in core.items() if version is None]
    problems += [f"saliency plug-in {name!r} cannot be loaded: {why}" for name, why in saliency_errors().items()]
    if torchvision:
        problems.append(torchvision)
    if java is None:
        problems.append(
            "no Java: METEOR and SPICE need it (any Java from 8 on); captioning and the other scores do not"
        )
    problems += [f"bundled {file} is {how}: reinstall salcap" for file, how in bundled_faults().items()]
    return {
        "salcap": package_version("salcap"),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": core,
        "extras": extras,
        "java": java,
        "offline": {name: os.environ.get(name) for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")},
        "hub_cache": os.environ.get("HF_HOME", str(Path("~/.cache/huggingface").expanduser())),
        "weights": weights,
        "saliency": list(list_saliency()),
        "problems": problems,
    }


def bundled_weights() -> dict[str, float]:
    """Bundled models that are whole, and their size in MiB."""
    broken = {file.partition("/")[0] for file in bundled_faults()}
    whole = [path for path in sorted(_WEIGHTS.glob("*/model.safetensors")) if path.parent.name not in broken]
    return {path.parent.name: round(path.stat().st_size / 2**20, 2) for path in whole}


def bundled_faults(folder: Path = _WEIGHTS) -> dict[str, str]:
    """Files of the bundled models that are "missing" or "changed", by their SHA-256 in ``SHA256SUMS``."""
    faults = {}
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        if not (folder / name).is_file():
            faults[name] = "missing"
        elif file_sha256(folder / name) != digest:
            faults[name] = "changed"
    return faults


def package_version(package: str) -> str | None:
    """The version that is installed, None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def java_version() -> str | None:
    """What Java says of itself, None where it cannot be run."""
    run = _run("java", "-version")
    return None if run is None or run.returncode else _last_line(run)


def _torchvision_problem() -> str | None:
    """torchvision's compiled part works with one torch build only, and its failure breaks image processors."""
    if find_spec("torchvision") is None:
        return None
    probe = "import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)"
    run = _run(sys.executable, "-c", probe)
    if run is not None and run.returncode == 0:
        return None
    reason = "its probe could not be run or took too long" if run is None else _last_line(run)
    return f"torchvision does not match this torch: {reason}; install the matching build or pip uninstall torchvision"


def _run(*command: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None


def _last_line(run: subprocess.CompletedProcess[str]) -> str:
    lines = (run.stderr or run.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit status {run.returncode}"
