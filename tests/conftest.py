"""Settings and fixtures for all tests: offline, few threads, the shared research data where it is at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other, longest on a busy machine


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of research data (never part of the product): $SALCAP_SHARED, or ``shared`` beside the repository."""
    folder = Path(os.environ.get("SALCAP_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no research data in {folder}; set SALCAP_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def java() -> str:
    """Java's path, for what cannot run without it."""
    path = shutil.which("java")
    if path is None:
        pytest.skip("no java on PATH")
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 8 kB, which ``mount -o remount`` makes larger or read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "salcap-test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
