"""``salcap score`` and ``salcap evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from salcap.cli import evaluate_saliency
from salcap.cli.captioning import MaxVisualTokens, MinKeep, Mode, Model, Revision, Zoom, load_captioner
from salcap.cli.console import AsJson, app, fail, number, print_table, progress_bar, say, wrong_use

# options of `evaluate` that one task has and the other has not
_ONLY = {
    "caption": (
        *("model", "revision", "mode", "policy", "keep_ratio", "max_visual_tokens", "min_keep"),
        *("zoom", "num_beams", "batch_size"),
    ),
    "saliency": ("split", "human"),
}


@app.command()
def score(
    references: Annotated[Path, typer.Option(help="JSON: {id: [caption, ...]}, also .json.gz.")],
    candidates: Annotated[Path, typer.Option(help="JSON: {id: caption}, also .json.gz.")],
    tokenizer: Annotated[
        str, typer.Option(help="java, python (BLEU, ROUGE-L and CIDEr without Java), or auto: java if it is there.")
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Score captions against references: BLEU, METEOR, ROUGE-L, CIDEr; exit status 1 if one of them could not run."""
    from salcap.evaluation.captions import NOT_ASKED, load_candidates, load_references, score_report

    with wrong_use():
        report = score_report(load_references(references), load_candidates(candidates), tokenizer=tokenizer)
    missing = {name: why for name, why in report.reasons.items() if why != NOT_ASKED}
    if as_json:
        print(json.dumps({**report.scores, "reasons": missing, "tokenizer": report.tokenizer}))
    else:
        print_table(("metric", "score"), [(name, number(value)) for name, value in report.scores.items()])
        say(f"tokenizer: {report.tokenizer}")
    for name, why in missing.items():
        say(f"{name}: {why}")
    if missing:
        raise typer.Exit(1)


@app.command()
def evaluate(
    context: typer.Context,
    dataset: Annotated[
        str,
        typer.Option(help="flickr8k-val, flickr8k-train, captioned-images; saliency: osie, sun500, etto, causality."),
    ],
    root: Annotated[Path, typer.Option(help="The data set's folder.")],
    task: Annotated[str, typer.Option(help="caption, or saliency: maps against human fixations.")] = "caption",
    model: Model = "salcap-mini",
    revision: Revision = None,
    saliency: Annotated[
        str | None,
        typer.Option(help="Backbone (see salcap list), default: the captioner's own; for saliency several, by commas."),
    ] = None,
    mode: Mode = None,
    policy: Annotated[str | None, typer.Option(help="One policy, or several separated by commas.")] = None,
    keep_ratio: Annotated[str | None, typer.Option(help="One share, or several separated by commas.")] = None,
    max_visual_tokens: MaxVisualTokens = None,
    min_keep: MinKeep = None,
    zoom: Zoom = None,
    num_beams: Annotated[int, typer.Option(min=1)] = 3,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    split: Annotated[
        str | None, typer.Option(help="Saliency: train, val or all; default: val if there is one.")
    ] = None,
    human: Annotated[bool, typer.Option("--human", help="Saliency: half of the observers as one more row.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first items; said in the result.")] = None,
    device: Annotated[str | None, typer.Option()] = None,
    output: Annotated[Path | None, typer.Option(help="Also write results and single items to this JSON file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score captions or saliency maps on a data set.

    Captions: every combination of the policies and keep ratios given is one row. Saliency: every backbone is one.
    """
    _check_options(context, task)
    if output is not None and not output.parent.is_dir():
        fail(f"output folder {output.parent} does not exist")
    if output is not None and output.exists():
        fail(f"output {output} exists; name another")
    if task == "saliency":
        evaluate_saliency.run(dataset, root, split, saliency, human, limit, device, output, as_json)
        return
    from salcap.evaluation.evaluate import evaluate_images, load_dataset

    policies = policy.split(",") if policy else [None]
    with wrong_use():
        ratios = [float(ratio) for ratio in keep_ratio.split(",")] if keep_ratio else [None]
        items = load_dataset(dataset, root)[:limit]
        captioner = load_captioner(
            model, revision, saliency, mode, policies[0], ratios[0], max_visual_tokens, min_keep, zoom, device
        )
        arms = [
            captioner.with_weighting(policy=name, keep_ratio=ratio, max_visual_tokens=max_visual_tokens)
            for ratio in ratios
            for name in policies
        ]
    rows = []
    for arm in arms:
        with progress_bar(len(items), f"{arm.weighting.policy} {arm.weighting.keep_ratio}") as advance:
            row = evaluate_images(
                arm, items, dataset=dataset, batch_size=batch_size, progress=advance, num_beams=num_beams
            )
        rows.append(row)
        if as_json:
            print(json.dumps(row.to_dict(captions=False)), flush=True)
        if output is not None:  # after every row: a stop later loses none of them
            output.write_text(json.dumps([row.to_dict() for row in rows], indent=1), encoding="utf-8")
    if not as_json:
        names = list(rows[0].scores)
        print_table(
            ("saliency", "mode", "policy", "keep", "tokens", *names),
            [
                (
                    *(r.saliency or "-", r.mode, r.policy or "-", f"{r.keep_ratio:g}", f"{r.visual_tokens:g}"),
                    *(number(r.scores[name]) for name in names),
                )
                for r in rows
            ],
        )
    missing = {name: why for row in rows for name, why in row.missing_scores.items()}
    for name, why in missing.items():
        say(f"{name}: {why}")
    if missing:
        raise typer.Exit(1)


def _check_options(context: typer.Context, task: str) -> None:
    """Refuse an unknown task, and options that would do nothing for a known one."""
    if task not in _ONLY:
        fail(f"unknown task {task!r}, allowed: {', '.join(_ONLY)}")
    for other, names in _ONLY.items():
        for name in names if other != task else ():
            source = context.get_parameter_source(name)
            if source is not None and source.name != "DEFAULT":
                fail(f"--{name.replace('_', '-')} belongs to --task {other}, got --task {task}")
