"""What this installation has: versions, Java, weights, plug-ins, and what to do where something is missing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_CORE = ("torch", "transformers", "av", "numpy", "pycocoevalcap", "accelerate", "safetensors", "huggingface_hub")
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

    core = {name: _version(name) for name in _CORE}
    extras = {extra: _version(package) for extra, package in _EXTRAS.items()}
    weights = bundled_weights()
    java = _java()
    torchvision = _torchvision_problem()
    problems = [f"{name} is not installed: pip install salcap" for name, version in core.items() if version is None]
    problems += [f"saliency plug-in {name!r} cannot be loaded: {why}" for name, why in saliency_errors().items()]
    if torchvision:
        problems.append(torchvision)
    if java is None:
        problems.append("no Java: caption scores need it (any Java from 8 on); captioning does not")
    if not weights:
        problems.append("the bundled weights are missing: reinstall salcap")
    return {
        "salcap": _version("salcap"),
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
    """Bundled models and their size in MiB."""
    folder = Path(__file__).parent / "weights"
    sizes = {p.parent.name: p.stat().st_size / 2**20 for p in sorted(folder.glob("*/*.safetensors"))}
    return {name: round(size, 2) for name, size in sizes.items()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _java() -> str | None:
    if shutil.which("java") is None:
        return None
    try:
        run = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (run.stderr or run.stdout).splitlines()[0] if run.returncode == 0 else None


def _torchvision_problem() -> str | None:
    """torchvision's compiled part works with one torch build only, and its failure breaks image processors."""
    if find_spec("torchvision") is None:
        return None
    probe = "import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120)
    if run.returncode == 0:
        return None
    reason = run.stderr.strip().splitlines()[-1]
    return f"torchvision does not match this torch: {reason}; install the matching build or pip uninstall torchvision"
