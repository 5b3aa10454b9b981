"""The seed paper's experiment: captioners trained alike without saliency and with embedded maps, and what they say.

    bash scripts/reproduce_main_table.sh     # trainings, captions, times, and the table: hours on two cores

or step by step:

    python scripts/main_table.py train student 0   # one arm, one seed; killed, it goes on
    python scripts/main_table.py caption student 0 # Flickr8k val, and the clips of MSR-VTT and MSVD at hand
    python scripts/main_table.py time              # of a caption of 8 frames, the arms in turns
    python scripts/main_table.py table             # all scores with intervals, and the times
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from salcap.config import Weighting, load_config
from salcap.datasets.captioned_videos import CaptionedSet
from salcap.datasets.registry import load_captioned_set
from salcap.evaluation.bootstrap import Difference, paired_bootstrap
from salcap.evaluation.captions import ScoreReport, bleu_of_counts, score_reports
from salcap.evaluation.receipt import read_receipts
from salcap.saliency_captioner import SaliencyCaptioner
from salcap.training.finetune import FineTuner
from salcap.training.finetune_settings import FineTuning
from salcap.video import read_frames

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SALCAP_SHARED", ROOT.parent / "shared")) / "data"
RUNS = Path("runs/main-table")
ARMS = {"none": None, "center": "center", "teacher": "effnet_teacher", "student": "uva_net"}
EMBEDDING = Weighting("scale", strength=0.5)
SEEDS = (0, 1, 2)
SCORES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider")
SETS = {  # name of the receipt -> data set, folder, split
    "flickr8k": ("flickr8k-val", "flickr8k", None),
    "msrvtt": ("msrvtt", "msrvtt", "test"),
    "msvd": ("msvd", "msvd", "train"),
}
TABLES = {"Flickr8k val": ("flickr8k",), "MSR-VTT and MSVD clips": ("msrvtt", "msvd")}
NUM_FRAMES = 8


def train(arm: str, seed: int) -> None:
    """Fine-tune the bundled captioner by ``configs/main_table.yaml``, with maps by `EMBEDDING`, its gain learned."""
    settings = load_config(ROOT / "configs/main_table.yaml", FineTuning)
    settings = replace(settings, output=str(RUNS / f"{arm}-{seed}"), seed=seed)
    if ARMS[arm] is not None:
        settings = replace(settings, saliency=ARMS[arm], weighting=EMBEDDING, learned_gain=True)
    print(FineTuner(settings, lambda line: print(line, flush=True)).run())


def caption(arm: str, seed: int) -> None:
    """Receipts of what a captioner says, in the way that it was trained for."""
    folder = RUNS / f"{arm}-{seed}"
    for name, (dataset, root, split) in SETS.items():
        receipt = folder / f"{name}.json"
        if not receipt.exists():
            command = [sys.executable, "-m", "salcap", "evaluate", "--dataset", dataset, "--allow-missing"]
            command += ["--root", str(SHARED / "captions" / root), *(("--split", split) if split else ())]
            subprocess.run([*command, "--model", str(folder / "model"), "--output", str(receipt)], check=True)


def measure_times(rounds: int = 3) -> None:
    """`RUNS`/times.json: arm -> milliseconds of each caption of the clips at hand, reading left out."""
    clips = [item for name in TABLES["MSR-VTT and MSVD clips"] for item in load_set(name).present]
    arms = {arm: SaliencyCaptioner.from_pretrained(str(RUNS / f"{arm}-0/model")) for arm in ARMS}
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    order = list(arms)
    for turn in range(-1, rounds):  # the first warms up
        for item in clips:
            frames = read_frames(item.path, NUM_FRAMES, **arms["none"].read_options)
            for arm in order:
                spent = sum(arms[arm].caption(frames, NUM_FRAMES).timings.values())
                if turn >= 0:
                    times[arm].append(spent)
            order = order[1:] + order[:1]
    (RUNS / "times.json").write_text(json.dumps(times))


def load_set(name: str) -> CaptionedSet:
    dataset, root, split = SETS[name]
    return load_captioned_set(dataset, SHARED / "captions" / root, split)


def captions_of(arm: str, seed: int, sets: tuple[str, ...]) -> dict[str, str]:
    said: dict[str, str] = {}
    for name in sets:
        (receipt,) = read_receipts(RUNS / f"{arm}-{seed}" / f"{name}.json")
        said |= receipt.captions
    return said


def difference(ours: list[ScoreReport], theirs: list[ScoreReport], name: str) -> Difference:
    """Of the mean over the seeds; the clips are drawn anew, METEOR being the mean of the clips' own."""
    order = int(name[-1]) if name.startswith("bleu") else None

    def values(reports: list[ScoreReport]) -> np.ndarray:
        keys = list(reports[0].per_caption["cider"])
        if order is None:
            return np.array([[report.per_caption[name][key] for report in reports] for key in keys]).mean(1)
        return np.array([np.concatenate([report.bleu_counts[key] for report in reports]) for key in keys])

    def bleu(order: int, means: np.ndarray) -> np.ndarray:
        return np.mean([bleu_of_counts(part)[:, order - 1] for part in np.split(means, len(SEEDS), axis=1)], axis=0)

    return paired_bootstrap(values(ours), values(theirs), None if order is None else partial(bleu, order))


def print_table() -> None:
    for title, sets in TABLES.items():
        said = [captions_of(arm, seed, sets) for arm in ARMS for seed in SEEDS]
        references = {item.id: item.captions for name in sets for item in load_set(name).items if item.id in said[0]}
        reports = iter(score_reports(references, said))
        found = {arm: [next(reports) for _ in SEEDS] for arm in ARMS}
        num_clips = len(found["none"][0].per_caption["cider"])
        print(f"\n{title} ({num_clips}), mean and deviation over seeds {list(SEEDS)}\n")
        print(f"| arm | {' | '.join(SCORES)} |\n|---|{'---|' * len(SCORES)}")
        for arm, reports in found.items():
            cells = [[report.scores[name] for report in reports] for name in SCORES]
            print(f"| {arm} | " + " | ".join(f"{np.mean(cell):.3f} ± {np.std(cell):.3f}" for cell in cells) + " |")
        for arm, other in (("student", "none"), ("teacher", "none"), ("center", "none"), ("student", "teacher")):
            apart = [difference(found[arm], found[other], name) for name in SCORES]
            cells = [f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" for d in apart]
            print(f"| {arm} - {other} | " + " | ".join(cells) + " |")
    times = json.loads((RUNS / "times.json").read_text())
    print(f"\nMilliseconds of a caption of {NUM_FRAMES} frames, reading left out; median of {len(times['none'])}\n")
    for arm, spent in times.items():
        shares = {other: statistics.median(np.divide(spent, times[other])) for other in ("none", "teacher")}
        print(
            f"{arm}: {statistics.median(spent):.0f}, of none {shares['none']:.3f}, of teacher {shares['teacher']:.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    for name in ("train", "caption"):
        step = steps.add_parser(name)
        step.add_argument("arm", choices=ARMS)
        step.add_argument("seed", type=int)
    for name in ("time", "table"):
        steps.add_parser(name)
    options = parser.parse_args()
    if options.step in ("train", "caption"):
        {"train": train, "caption": caption}[options.step](options.arm, options.seed)
    else:
        {"time": measure_times, "table": print_table}[options.step]()


if __name__ == "__main__":
    main()
