"""The seed paper's experiment: captioners trained alike without saliency and with embedded maps, and what they say.

    bash scripts/reproduce_main_table.sh     # maps, trainings, captions, times, and the table

or step by step:

    python scripts/main_table.py train student 0   # one arm, one seed; killed, it goes on
    python scripts/main_table.py time              # of a caption of 8 frames, the arms in turns
    python scripts/main_table.py table             # all scores with intervals, and the times
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from salcap.config import Weighting, load_config
from salcap.training.finetune import FineTuner
from salcap.training.finetune_settings import FineTuning

ROOT = Path(__file__).resolve().parents[1]
RUNS = Path("runs/main-table")
ARMS = {"none": None, "center": "center", "teacher": "effnet_teacher", "student": "uva_net"}
EMBEDDING = Weighting("scale", strength=0.5)
SEEDS = (0, 1, 2)


def train(arm: str, seed: int) -> None:
    """Fine-tune the bundled captioner by ``configs/main_table.yaml``, an arm's maps embedded by `EMBEDDING`."""
    settings = load_config(ROOT / "configs/main_table.yaml", FineTuning)
    settings = replace(settings, output=str(RUNS / f"{arm}-{seed}"), seed=seed)
    if ARMS[arm] is not None:
        settings = replace(settings, saliency=ARMS[arm], weighting=EMBEDDING)
    print(FineTuner(settings, lambda line: print(line, flush=True)).run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    trained = steps.add_parser("train")
    trained.add_argument("arm", choices=ARMS)
    trained.add_argument("seed", type=int)
    options = parser.parse_args()
    train(options.arm, options.seed)


if __name__ == "__main__":
    main()
