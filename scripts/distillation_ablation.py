"""Train every arm of configs/distill with several seeds and print a table: mean and spread of the validation scores.

python scripts/distillation_ablation.py [--seeds 0,1,2] [--arms soft,coupled,...]

An arm that is done is not trained again. Networks that an arm starts from are trained before it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARMS = (
    "no_distillation",
    "soft",
    "coupled",
    "statistics",
    "generative",
    "see_little",
    "collaborative",
    "combined",
)
# arm -> the arm whose first network it starts from; collaborative's other partner is the big teacher
NEEDS = {"see_little": "coupled", "collaborative": "uva_net_32"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default=",".join(ARMS))
    options = parser.parse_args()
    rows = {}
    for arm in options.arms.split(","):
        if arm in NEEDS:
            train(NEEDS[arm], seed=0)
        runs = [train(arm, int(seed)) for seed in options.seeds.split(",")]
        rows[arm] = {name: [run[name] for run in runs] for name in runs[0]}
        print(json.dumps({"arm": arm, **rows[arm]}), flush=True)
    names = list(next(iter(rows.values())))
    print("| arm | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
    for arm, scores in rows.items():
        cells = [f"{statistics.mean(v):.3f} ± {statistics.pstdev(v):.3f}" for v in scores.values()]
        print(f"| {arm} | " + " | ".join(cells) + " |")


def train(arm: str, seed: int) -> dict[str, float]:
    """Validation scores of one run, trained unless it is there."""
    # the first seed's network goes where the configs of other arms look for it
    output = Path("runs/distill") / (arm if seed == 0 else f"{arm}-seed{seed}")
    if not (ROOT / output / "model" / "config.json").is_file():
        config = f"configs/distill/{arm}.yaml"
        command = [sys.executable, "-m", "salcap", "distill", config, "--seed", str(seed), "--output", str(output)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    records = [json.loads(line) for line in (ROOT / output / "log.jsonl").read_text().splitlines()]
    scores: dict[str, float] = [record["scores"] for record in records if "scores" in record][-1]
    return scores


if __name__ == "__main__":
    main()
