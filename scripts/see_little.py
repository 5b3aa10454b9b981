"""See-very-little captioning: 4 of a clip's 16 frames, distilled, against the same without a teacher.

    bash scripts/reproduce_see_little.sh        # data, trainings, table

or step by step:

    python scripts/see_little.py data           # pans over photographs: clips whose frames each show a part
    salcap train configs/see_little/teacher.yaml
    python scripts/see_little.py unlabelled     # natural clips, captioned by the teacher
    salcap train configs/see_little/student.yaml
    python scripts/see_little.py undistilled    # the same training without the teacher's losses
    python scripts/see_little.py table
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from make_standin_set import write_clip
from PIL import Image

from salcap.config import load_config
from salcap.datasets.captioned_images import load_captioned_images
from salcap.datasets.registry import load_captioned_set
from salcap.evaluation.bootstrap import paired_bootstrap
from salcap.evaluation.captions import score_reports
from salcap.saliency_captioner import SaliencyCaptioner
from salcap.training.finetune import FineTuner
from salcap.training.finetune_settings import FineTuning

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SALCAP_SHARED", ROOT.parent / "shared")) / "data"
RUNS = Path("runs/see-little")
CLIPS = RUNS / "clips"
FPS, NUM_FRAMES, SIDE = 8, 32, 224
VIEW = 0.5  # side of what a frame of a pan shows, as a share of the photograph's
COUNTS = {"train": 1200, "val": 300}
WINDOW = 2.5  # seconds, of natural clips
TAUGHT = "train+unlabelled"  # the split that the students learn from

Arm = tuple[str, int, str]  # captioner, frames, and how they are chosen
MODELS = ("teacher", "undistilled", "distilled")
TEACHER: Arm = ("teacher", 16, "uniform")
TABLE: tuple[Arm, ...] = (TEACHER, *((name, 4, frames) for frames in ("saliency", "uniform") for name in MODELS))
METRICS = ("bleu", "meteor", "rouge_l", "cider")


def pan(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """A camera that shows a part of a photograph at a time: it rests at four places and moves between them."""
    places = rng.random((4, 2)) * (1 - VIEW)
    knots = np.repeat(places, 2, 0)  # a rest, a move, a rest, ...
    at = np.linspace(0, len(knots) - 1, NUM_FRAMES)
    boxes = np.stack([np.interp(at, np.arange(len(knots)), knots[:, axis]) for axis in (0, 1)], 1)
    frames = []
    for left, top in boxes:
        box = (left * image.width, top * image.height, (left + VIEW) * image.width, (top + VIEW) * image.height)
        frames.append(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))
    return np.stack([np.asarray(frame) for frame in frames])


def make_pans() -> None:
    """`CLIPS`: pans over Flickr8k's photographs, of its splits, with their captions."""
    CLIPS.mkdir(parents=True, exist_ok=True)
    lines = []
    for split, count in COUNTS.items():
        for number, item in enumerate(load_captioned_images(SHARED / "captions/flickr8k", split)[:count]):
            path = CLIPS / f"{split}-{number:04d}.mp4"
            if not path.exists():
                with Image.open(item.path) as image:
                    write_clip(
                        path, pan(image.convert("RGB"), np.random.default_rng((len(split), number))), FPS, crf=20
                    )
            lines.append({"video": path.name, "captions": item.captions, "split": split})
    write_lines(lines)


def caption_unlabelled() -> None:
    """Add windows of natural clips with what the teacher says of 16 frames: with the pans, the split to learn from."""
    teacher = SaliencyCaptioner.from_pretrained(str(RUNS / "teacher/model"))
    lines = [line for line in read_lines() if line["split"] in COUNTS]
    taught = [{**line, "id": f"taught-{line['video']}", "split": TAUGHT} for line in lines if line["split"] == "train"]
    source = SHARED / "clips"
    for clip in json.loads((source / "clips.json").read_text()):
        if not (CLIPS / clip["name"]).exists():
            shutil.copy(source / clip["name"], CLIPS)
        for start in np.arange(0, max(clip["seconds"] - WINDOW, 0) + 1e-6, WINDOW).tolist():
            end = min(start + WINDOW, clip["seconds"])
            said = teacher.caption(CLIPS / clip["name"], 16, start_seconds=start, end_seconds=end)
            line = {"video": clip["name"], "start": start, "end": end, "id": f"{clip['name']}@{start:g}"}
            taught.append({**line, "captions": [said.text], "split": TAUGHT})
    write_lines(lines + taught)


def read_lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CLIPS / "captions.jsonl").read_text(encoding="utf-8").splitlines()]


def write_lines(lines: list[dict[str, Any]]) -> None:
    partial = CLIPS / "captions.partial"
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(partial, CLIPS / "captions.jsonl")


def train_undistilled() -> None:
    """The student's training without what the teacher says, but for the captions of the unlabelled clips."""
    settings = load_config(ROOT / "configs/see_little/student.yaml", FineTuning)
    assert settings.see_little is not None
    alone = replace(settings.see_little, prediction=0.0, representation=0.0)
    settings = replace(settings, output=str(RUNS / "undistilled"), see_little=alone)
    print(FineTuner(settings, lambda line: print(line, flush=True)).run())


def print_table() -> None:
    """The arms in turns on the pans over validation photographs: what is said, and how long it takes."""
    items = load_captioned_set("videos", CLIPS, "val").present
    models = {name: SaliencyCaptioner.from_pretrained(str(RUNS / name / "model")) for name in MODELS}
    said: dict[Arm, dict[str, str]] = {arm: {} for arm in TABLE}
    times: dict[Arm, list[dict[str, float]]] = {arm: [] for arm in TABLE}
    order = list(TABLE)
    for item in items:
        for arm in order:
            model, num_frames, frames = arm
            result = models[model].caption(item.path, num_frames, frames=frames)
            said[arm][item.id] = result.text or ""
            times[arm].append(result.timings)
        order = order[1:] + order[:1]
    references = {item.id: item.captions for item in items}
    reports = dict(zip(said, score_reports(references, list(said.values()), METRICS), strict=True))
    totals = {arm: np.array([sum(stages.values()) for stages in each]) for arm, each in times.items()}
    bare = {arm: totals[arm] - np.array([stages["read_ms"] for stages in each]) for arm, each in times.items()}
    print(f"{len(items)} clips; CIDEr minus the teacher's, and minus the undistilled one's, with 95 % intervals\n")
    headings = ("captioner", "frames", *METRICS, "- teacher", "- undistilled", "ms", "of teacher", "with reading")
    print(f"| {' | '.join(headings)} |")
    print("|---|---|" + "---|" * (len(METRICS) + 5))
    for arm in TABLE:
        scores = [reports[arm].scores["bleu_4" if name == "bleu" else name] for name in METRICS]
        cells = [arm[0], f"{arm[1]} {arm[2]}", *(f"{score:.3f}" for score in scores)]
        for other in (TEACHER, ("undistilled", 4, arm[2])):
            values = [np.array([reports[a].per_caption["cider"][item.id] for item in items]) for a in (arm, other)]
            apart = paired_bootstrap(*values)
            cells.append("" if arm == other else f"{apart.value:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}]")
        cells.append(f"{np.median(bare[arm]):.0f}")
        cells += [f"{np.median(ms[arm] / ms[TEACHER]):.3f}" for ms in (bare, totals)]
        print("| " + " | ".join(cells) + " |")


STEPS = {"data": make_pans, "unlabelled": caption_unlabelled, "undistilled": train_undistilled, "table": print_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    STEPS[parser.parse_args().step]()


if __name__ == "__main__":
    main()
