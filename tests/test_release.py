"""What is released: sdist and wheel are built, checked, and the wheel captions where nothing else of the tree is."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from video_factory import ROOT


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT], check=True)
    return folder


def test_both_pass_twines_check(dist: Path) -> None:
    files = sorted(dist.iterdir())
    assert [file.name.split("-")[0] for file in files] == ["salcap"] * 2
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)


def test_the_sdist_has_what_its_tests_read(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {
        ".ci/run",
        ".github/CONTRIBUTING.md",
        "configs/uva_net.yaml",
        "scripts/setup.sh",
        "tests/conftest.py",
    } <= names


def test_the_wheel_has_all_weights_under_their_terms(dist: Path) -> None:
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        sums = wheel.read("salcap/weights/SHA256SUMS").decode().split("\n")[:-1]
        for digest, name in (line.split() for line in sums):
            assert hashlib.sha256(wheel.read(f"salcap/weights/{name}")).hexdigest() == digest
        (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        assert b"\nLicense-Expression: Apache-2.0 AND LicenseRef-research-only\n" in wheel.read(metadata)
        cards = {
            f"{Path(metadata).parent}/licenses/salcap/weights/{name}/README.md" for name in ("salcap-mini", "uva_net")
        }
        assert cards < set(wheel.namelist())
        assert len(sums) == 10


def test_the_wheel_captions_by_itself(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path / "site"]
    subprocess.run([*pip, wheel], check=True)
    code = """
import salcap
assert salcap.__file__.startswith(__import__("os").environ["PYTHONPATH"]), salcap.__file__
print(salcap.SaliencyCaptioner.from_pretrained().caption("sample.mp4", num_frames=4).text)
"""
    (tmp_path / "sample.mp4").write_bytes((ROOT / "data/sample.mp4").read_bytes())
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert len(said.stdout.split()) >= 3
