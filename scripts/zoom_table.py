"""Is a closer crop worth its tokens? Captions of still images at equal numbers of visual tokens, one row an arm.

The bundled captioner, made to read smaller views by interpolating its position embeddings (no training), captions
photographs from two views of 112 pixels, 49 tokens each: the whole, and a crop of half of each side at full
resolution, cut where the student or the teacher looks, in the centre, or in a place that means nothing. Against it one
view of as many tokens (160 pixels, 100 tokens), one of 49 and one of 196.

    python scripts/zoom_table.py ../shared/data/captions/flickr8k --limit 300 --models /tmp/models

The views' captioners are left in the folder ``--models``, for ``salcap evaluate --model``. With ``--trained`` they are
those that ``scripts/zoom_training.py`` left there, for two views and for one of 160 pixels. The last line is JSON: each
arm's scores, tokens, stages in ms, and the difference of its CIDEr from each other one's with a paired bootstrap
interval (95 %, 2,000 draws of the images).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from salcap.captioners import load_captioner
from salcap.datasets.registry import load_captioned_set
from salcap.evaluation.bootstrap import paired_bootstrap
from salcap.evaluation.captions import score_report
from salcap.evaluation.evaluate import describe_runs, evaluate_set
from salcap.saliency_captioner import SaliencyCaptioner

VIEW, EQUAL, FULL = 112, 160, 224  # pixels
ZOOMED = {name: {"mode": "zoom", "saliency": name} for name in ("uva_net", "effnet_teacher", "center", "random")}


def save_resized(size: int, folder: Path) -> str:
    """The bundled captioner for images of ``size`` pixels, saved to a folder of its own; returns its path."""
    captioner = load_captioner("salcap-mini")
    captioner.model.encoder.resize(size)
    image_processor = captioner.preprocess.image_processor
    image_processor.size = {"height": size, "width": size}
    path = folder / f"salcap-mini-{size}"
    for part in (captioner.model, image_processor, captioner.tokenizer):
        part.save_pretrained(path)
    return str(path)


def difference(ours: dict[str, float], theirs: dict[str, float]) -> tuple[float, float, float]:
    """Mean difference of the images' scores, and the ends of its 95 % interval."""
    found = paired_bootstrap(*(np.array([scores[key] for key in ours]) for scores in (ours, theirs)))
    return round(found.value, 4), round(found.low, 4), round(found.high, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--zoom", type=float, default=2.0)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--trained", action="store_true")
    options = parser.parse_args()
    dataset = load_captioned_set("flickr8k-val", options.root).first(options.limit)
    references = {item.id: list(item.captions) for item in dataset.items}
    if options.trained:
        singles: tuple[int, ...] = (EQUAL,)
        models = {VIEW: str(options.models / "pair" / "model"), EQUAL: str(options.models / "single" / "model")}
    else:
        singles = (EQUAL, VIEW, FULL)
        models = {size: save_resized(size, options.models) for size in singles}
    arms = {f"zoom {name}": (VIEW, {**setting, "zoom": options.zoom}) for name, setting in ZOOMED.items()}
    arms |= {f"one view of {size} px": (size, {"mode": "none"}) for size in singles}
    rows, each = {}, {}
    for name, (size, setting) in arms.items():
        captioner = SaliencyCaptioner.from_pretrained(models[size], **setting)
        row = evaluate_set(captioner, dataset, *describe_runs([captioner], dataset, num_beams=3))
        each[name] = score_report(references, row.captions, ["cider"]).per_caption["cider"]
        rows[name] = {key: getattr(row, key) for key in ("visual_tokens", "scores", "stage_ms", "zoom")}
        scores = " ".join(f"{key} {row.scores[key]:.4f}" for key in ("bleu_4", "cider"))
        print(f"{name:20} {row.visual_tokens:5g} tokens  {scores}", flush=True)
    for name, row in rows.items():
        row["cider_above"] = {other: difference(each[name], each[other]) for other in rows if other != name}
    print(json.dumps({"images": len(dataset.items), "zoom": options.zoom, "arms": rows}))


if __name__ == "__main__":
    main()
