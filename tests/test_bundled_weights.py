"""What the package bundles is what its list of hashes says."""

from __future__ import annotations

import shutil
from pathlib import Path

import salcap
from salcap.doctor import bundled_faults, bundled_weights

WEIGHTS = Path(salcap.__file__).parent / "weights"


def test_every_bundled_file_is_listed_and_whole() -> None:
    listed = {line.split()[1] for line in (WEIGHTS / "SHA256SUMS").read_text().splitlines()}
    there = {path.relative_to(WEIGHTS).as_posix() for path in WEIGHTS.glob("*/*") if path.name != "README.md"}
    assert listed == there
    assert bundled_faults() == {}
    assert set(bundled_weights()) == {"effnet_teacher", "salcap-mini", "uva_net"}


def test_a_changed_or_missing_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(WEIGHTS, folder)
    weights = folder / "uva_net" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    (folder / "salcap-mini" / "tokenizer.json").unlink()
    assert bundled_faults(folder) == {"salcap-mini/tokenizer.json": "missing", "uva_net/model.safetensors": "changed"}
