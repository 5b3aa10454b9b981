"""`salcap inspect` on a tiny random model of every family, as the tests make them: one row of a table each.

    python scripts/inspect_families.py

Exit status 1 if a self-test fails.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import tiny_models
import tiny_multimodal

import salcap
from salcap.captioners import load_captioner


def main() -> None:
    rows, names = {}, []
    for family, make in {**tiny_models.FAMILIES, **tiny_multimodal.FAMILIES}.items():
        tiny = make()
        found = salcap.inspect(load_captioner(tiny.model, tiny.processor))
        names += [name for name in found.checks if name not in names]
        rows[family] = found
    print("| family | modes | pruning | " + " | ".join(names) + " |\n|" + "---|" * (3 + len(names)))
    for family, found in rows.items():
        marks = [{True: "passed", False: "FAILED", None: "-"}[found.checks[name].passed] for name in names]
        modes = ", ".join(sorted(set(found.modes) - {"none"}))
        print(f"| {family} | {modes} | {found.prunes or '-'} | " + " | ".join(marks) + " |")
    if not all(found.passed for found in rows.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
