"""Is reading as fast as in another checkout? Both read the same files in turns, and CPU time is compared.

    python scripts/compare_reading.py OLD_CHECKOUT ../shared/data/clips long.mp4 [--rounds 5]

Prints a JSON line with the median of seconds of CPU for each, and the median of the rounds' ratios (new to old).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
READ = """
import resource, sys
from salcap.video import read_frames
read_frames(sys.argv[1], num_frames=1)  # imports and libraries are loaded
before = resource.getrusage(resource.RUSAGE_SELF)
for path in sys.argv[1:]:
    read_frames(path, num_frames=8)
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_utime - before.ru_utime)
"""


def measure(checkout: Path, files: list[str]) -> float:
    """Seconds of CPU that a process of its own takes to read 8 frames of each file."""
    env = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    run = subprocess.run([sys.executable, "-c", READ, *files], env=env, check=True, capture_output=True, text=True)
    return float(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("sources", type=Path, nargs="+", help="videos, and folders of .mp4 files")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found = [sorted(source.glob("*.mp4")) if source.is_dir() else [source] for source in options.sources]
    files = [str(path.resolve()) for paths in found for path in paths]
    old, new = [], []
    for _ in range(options.rounds):
        old.append(measure(options.old, files))
        new.append(measure(ROOT, files))
    ratio = statistics.median(b / a for a, b in zip(old, new, strict=True))
    medians = {"old_seconds": statistics.median(old), "new_seconds": statistics.median(new)}
    print(json.dumps({"files": len(files), **{k: round(v, 3) for k, v in medians.items()}, "ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
