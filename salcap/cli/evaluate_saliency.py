"""``salcap evaluate --task saliency``."""

from __future__ import annotations

from pathlib import Path

import typer

from salcap.cli.console import fail, print_table, progress_bar, say, wrong_use
from salcap.strict_json import to_json

# metric -> its heading; the best known first, narrow enough for 80 columns
_HEADINGS = {
    "nss": "nss",
    "auc_judd": "auc_j",
    "s_auc": "s_auc",
    "cc": "cc",
    "sim": "sim",
    "kld": "kld",
    "information_gain": "gain",
}


def run(
    dataset: str,
    root: Path,
    split: str | None,
    saliency: str | None,
    human: bool,
    limit: int | None,
    device: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Score each backbone, then people; one JSON line or one row of a table each."""
    from salcap.evaluation.saliency import SaliencyEvaluation, evaluate_human, evaluate_saliency, load_gaze
    from salcap.outputs import whole_file
    from salcap.saliency import create_saliency
    from salcap.video import VideoDecodeError

    if not saliency and not human:
        fail("--task saliency needs --saliency with one backbone or several, separated by commas, or --human")
    with wrong_use():
        items, split = load_gaze(dataset, root, split)
        items = items[:limit]
        if not items:
            raise ValueError(f"{dataset}, split {split}: no items in {root}")
        models = [create_saliency(name) for name in saliency.split(",")] if saliency else []
        for item in items if human else ():
            item.halves()  # a set that pools its observers is refused before the backbones have run
    rows: list[SaliencyEvaluation] = []
    for model in [*models, *([None] if human else [])]:
        try:
            with progress_bar(len(items), "human" if model is None else model.name) as advance:
                settings = {"dataset": dataset, "split": split, "progress": advance}
                if model is None:
                    rows.append(evaluate_human(items, **settings))
                else:
                    rows.append(evaluate_saliency(model.to(device), items, **settings))
        except (OSError, VideoDecodeError) as error:
            say(f"error: {error}")
            raise typer.Exit(1) from error
        if as_json:
            print(to_json(rows[-1].to_dict(per_item=False)), flush=True)
        if output is not None:  # after every row: a stop later loses none of them
            with whole_file(output) as partial:
                partial.write_text(to_json([row.to_dict() for row in rows], indent=1), encoding="utf-8")
    if not as_json:
        cells = [(row.saliency, *(_number(row.scores[name]) for name in _HEADINGS)) for row in rows]
        say(f"{dataset}, split {split}, {len(items)} items")
        print_table(("saliency", *_HEADINGS.values()), cells)
    if len(items) == 1:
        say("s_auc: needs the fixations of other items, and there is one item only")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
