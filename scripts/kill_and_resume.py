"""Kill `salcap distill` at random moments, start it again each time, and hold the end against an undisturbed run.

    python scripts/kill_and_resume.py configs/distill/soft.yaml --output runs/killed [--kills 5]

Both runs have the seed of the config. Ends with one JSON line: scores of both, the steps at which it went on, and the
largest difference between the weights.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file


def distill(config: Path, output: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "salcap", "distill", str(config), "--output", str(output)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for_training(process: subprocess.Popen[str]) -> int:
    """Read on to the line that says at which step training begins."""
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"steps (\d+)-\d+", line):
            return int(found[1])
    raise RuntimeError(f"salcap distill ended with status {process.wait()} before it trained")


def last_scores(folder: Path) -> dict[str, float]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    scores: dict[str, float] = [record["scores"] for record in records if "scores" in record][-1]
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--shortest", type=float, default=10, help="seconds of training before a kill")
    parser.add_argument("--longest", type=float, default=25)
    options = parser.parse_args()
    whole, killed = options.output / "whole", options.output / "killed"
    process = distill(options.config, whole)
    started = time.monotonic()
    wait_for_training(process)
    process.communicate()
    print(f"undisturbed: {time.monotonic() - started:.0f} s, {last_scores(whole)}", flush=True)
    rng, begun = random.Random(0), []
    for number in range(options.kills + 1):
        process = distill(options.config, killed)
        begun.append(wait_for_training(process))
        if number < options.kills:
            time.sleep(rng.uniform(options.shortest, options.longest))
            process.send_signal(signal.SIGKILL)
        process.communicate()
        print(f"begun at step {begun[-1]}, ended with status {process.returncode}", flush=True)
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (whole, killed)]
    apart = max(float((weights[0][name].float() - weights[1][name].float()).abs().max()) for name in weights[0])
    scores = {"undisturbed": last_scores(whole), "killed": last_scores(killed)}
    print(json.dumps({**scores, "begun_at_steps": begun, "largest_difference_of_weights": apart}))


if __name__ == "__main__":
    main()
