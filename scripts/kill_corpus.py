"""Kill `salcap caption` with SIGKILL at random moments, go on each time, and hold the captions against one whole run's.

    python scripts/kill_corpus.py /tmp/kill-corpus --num-kills 20 --num-clips 300 [--seed 0]

Renders the clips into the folder first, as make_standin_set.py does; clips and records of the undisturbed run that are
there already are kept. A run is killed when the records have reached a drawn number, and a part of a second has passed;
where an earlier run has written so many, while it starts. Ends with one JSON line; the exit status is 1 where a record
is lost, comes twice or has another caption, or a reading process outlives its run.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from make_standin_set import render_clips

from salcap.records import read_records

POLL_SECONDS = 0.005


def start(clips: Path, output: Path, num_frames: int) -> subprocess.Popen[bytes]:
    command = ["caption", str(clips), "--num-frames", str(num_frames), "--workers", "1", "--output", str(output)]
    return subprocess.Popen([sys.executable, "-m", "salcap", *command], stdout=subprocess.DEVNULL)


def finish(process: subprocess.Popen[bytes]) -> None:
    if status := process.wait():
        raise RuntimeError(f"salcap caption ended with status {status}")


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(path: Path, num_records: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and count_lines(path) < num_records:
        time.sleep(POLL_SECONDS)


def kill(process: subprocess.Popen[bytes]) -> int:
    """SIGKILL a run; how many of its reading processes are still there after a minute."""
    readers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(readers, timeout=60)
    return len(left)


def kill_runs(folder: Path, num_kills: int, num_clips: int, seed: int = 0, num_frames: int = 2) -> dict[str, Any]:
    """The result is JSON-ready.

    Raises:
        ValueError: no more clips than kills.
        RuntimeError: a run that was left alone failed.
    """
    if not 0 < num_kills < num_clips:
        raise ValueError(f"each kill needs a clip of its own and one must be left, got {num_kills} and {num_clips}")
    clips, whole, output = folder / f"clips-{num_clips}", folder / f"whole-{num_clips}.jsonl", folder / "killed.jsonl"
    render_clips(clips, num_clips)
    for path in folder.glob("killed.jsonl*"):
        path.unlink()
    kept, started = count_lines(whole), time.monotonic()
    process = start(clips, whole, num_frames)
    wait_for(whole, kept + 1, process)
    start_seconds = time.monotonic() - started
    finish(process)
    print(
        f"undisturbed: {time.monotonic() - started:.0f} s, {start_seconds:.0f} s until it wrote or had nothing to do",
        flush=True,
    )

    rng, killed_at, outlived = random.Random(seed), [], 0
    started = time.monotonic()
    for num_records in sorted(rng.sample(range(num_clips - 1), num_kills)):
        process = start(clips, output, num_frames)
        if count_lines(output) >= num_records:
            time.sleep(rng.uniform(0, start_seconds))
        else:
            wait_for(output, num_records, process)
            time.sleep(rng.uniform(0, 0.2))
        if process.poll() is None:
            outlived += kill(process)
            killed_at.append(count_lines(output))
        print(f"ended with status {process.returncode} after {count_lines(output)} records", flush=True)
    finish(start(clips, output, num_frames))
    records = list(read_records(output))
    expected = {record["id"]: record["caption"] for record in read_records(whole)}
    captions = {record["id"]: record["caption"] for record in records}
    return {
        "clips": num_clips,
        "runs_killed": len(killed_at),
        "records_at_kills": killed_at,
        "records": len(records),
        "duplicates": len(records) - len(captions),
        "missing": len(expected.keys() - captions.keys()),
        "different_captions": sum(expected.get(name) != caption for name, caption in captions.items()),
        "readers_that_outlived": outlived,
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-kills", type=int, default=20)
    parser.add_argument("--num-clips", type=int, default=300)
    parser.add_argument("--num-frames", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = kill_runs(options.folder, options.num_kills, options.num_clips, options.seed, options.num_frames)
    print(json.dumps(result))
    sys.exit(any(result[name] for name in ("duplicates", "missing", "different_captions", "readers_that_outlived")))


if __name__ == "__main__":
    main()
