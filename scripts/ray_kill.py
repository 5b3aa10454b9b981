"""Caption clips with two Ray workers, kill one of them on the way, and hold the records against one process's.

    python scripts/ray_kill.py /tmp/ray-kill --num-clips 200

Renders the clips into the folder first, as make_standin_set.py does; clips and records of one process that are there
already are kept. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from make_standin_set import render_clips

import salcap
from salcap.ray import caption_dataset
from salcap.record_parts import read_parts
from salcap.records import read_records


def kill_a_worker() -> int:
    """SIGKILL one of this process's Ray actors that caption; its process id."""
    processes = psutil.Process().children(recursive=True)
    actors = [process for process in processes if process.name().startswith("ray::MapWorker")]
    victim = max(actors, key=lambda process: sum(process.cpu_times()[:2]))
    victim.kill()
    return victim.pid


def without_timings(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "timings"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-clips", type=int, default=200)
    parser.add_argument("--num-frames", type=int, default=8)
    parser.add_argument("--format", default="jsonl", choices=("jsonl", "parquet"))
    options = parser.parse_args()
    paths = list(map(str, render_clips(options.folder / "clips", options.num_clips)))

    torch.set_num_threads(1)  # as a Ray worker with one core has: scores are then the same to the last bit
    started = time.monotonic()
    captioner = salcap.SaliencyCaptioner.from_pretrained("salcap-mini")
    single, output = options.folder / "one-process.jsonl", options.folder / f"ray.{options.format}"
    salcap.caption_corpus(captioner, paths, single, num_frames=options.num_frames)
    print(f"one process: {time.monotonic() - started:.0f} s", flush=True)

    killed: list[int] = []

    def progress(record: dict[str, Any], done: int, total: int) -> None:
        if done >= total / 3 and not killed:
            killed.append(kill_a_worker())
            print(f"{done} of {total} done, killed worker {killed[0]}", flush=True)

    started = time.monotonic()
    ray.init(num_cpus=2, include_dashboard=False)
    caption_dataset(paths, output, num_actors=2, num_frames=options.num_frames, overwrite=True, progress=progress)
    print(f"Ray, two workers: {time.monotonic() - started:.0f} s", flush=True)
    records = list(read_parts(output))
    expected = {record["id"]: without_timings(record) for record in read_records(single)}
    result = {
        "clips": len(paths),
        "killed": len(killed),
        "records": len(records),
        "duplicates": len(records) - len({record["id"] for record in records}),
        "failed": sum(record["error_class"] is not None for record in records),
        "same_as_one_process": {record["id"]: without_timings(record) for record in records} == expected,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
