"""``salcap score``, and the options of ``salcap evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from salcap.cli import evaluate_captions, evaluate_saliency
from salcap.cli.captioning import Device, MaxVisualTokens, MinKeep, Mode, Model, Revision, Workers, Zoom, load_captioner
from salcap.cli.console import AsJson, app, fail, given, number, print_table, say, wrong_use
from salcap.strict_json import to_json

# options of `evaluate` that one task has and the other has not
_ONLY = {
    "caption": (
        *("model", "revision", "mode", "policy", "keep_ratio", "max_visual_tokens", "min_keep"),
        *("zoom", "num_frames", "frames", "prompt", "num_beams", "max_new_tokens", "batch_size"),
        *("untrimmed", "allow_missing", "workers"),
    ),
    "saliency": ("human",),
}


@app.command()
def score(
    references: Annotated[
        Path,
        typer.Option(
            help="{id: [caption, ...]}, or COCO's or MSR-VTT's annotation file: JSON, JSON lines, or gzipped."
        ),
    ],
    candidates: Annotated[
        Path,
        typer.Option(help="{id: caption}, results with image_id or video_id, or the .jsonl file of salcap caption."),
    ],
    split: Annotated[
        str | None, typer.Option(help="Of references that have splits, as MSR-VTT's: train, val, test; default: all.")
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="java, python (BLEU, ROUGE-L and CIDEr without Java), or auto: java if it is there.")
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Score captions against references: BLEU, METEOR, ROUGE-L, CIDEr; exit status 1 if one of them could not run."""
    from salcap.evaluation.caption_files import load_candidates, load_references, match_ids
    from salcap.evaluation.captions import NOT_ASKED, score_report

    with wrong_use():
        truths = load_references(references, split)
        report = score_report(truths, match_ids(truths, load_candidates(candidates)), tokenizer=tokenizer)
    missing = {name: why for name, why in report.reasons.items() if why != NOT_ASKED}
    if as_json:
        print(to_json({**report.scores, "reasons": missing, "tokenizer": report.tokenizer}))
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
        typer.Option(
            help="msrvtt, msvd, activitynet, activitynet-paragraphs, videos (your own, see README), flickr8k-val,"
            " flickr8k-train, captioned-images; saliency: osie, sun500, etto, causality."
        ),
    ],
    root: Annotated[Path, typer.Option(help="The data set's folder.")],
    task: Annotated[str, typer.Option(help="caption, or saliency: maps against human fixations.")] = "caption",
    split: Annotated[
        str | None, typer.Option(help="train, val, test, 1k-A, ...; saliency: train, val or all; default: val.")
    ] = None,
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
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames of a video; default: 8.")] = None,
    frames: Annotated[str, typer.Option(help="uniform, or saliency: more where the gaze moves.")] = "uniform",
    prompt: Annotated[str | None, typer.Option(help="What to ask the model, where it takes text.")] = None,
    num_beams: Annotated[int, typer.Option(min=1)] = 3,
    max_new_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    workers: Workers = None,
    untrimmed: Annotated[
        bool, typer.Option("--untrimmed", help="msrvtt, msvd: the files are the uncut sources of the clips.")
    ] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Score what there is; the result is marked as partial.")
    ] = False,
    human: Annotated[bool, typer.Option("--human", help="Saliency: half of the observers as one more row.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first items; a receipt says partial.")] = None,
    device: Device = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write the receipt (JSON; see salcap verify); killed, the same command goes on. Saliency: JSON of each"
            " row as it comes."
        ),
    ] = None,
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
    from salcap.datasets.captioned_videos import describe_missing
    from salcap.datasets.registry import load_captioned_set
    from salcap.evaluation.evaluate import describe_runs

    policies = policy.split(",") if policy else [None]
    with wrong_use():
        ratios = [float(ratio) for ratio in keep_ratio.split(",")] if keep_ratio else [None]
        least = min((ratio for ratio in ratios if ratio is not None), default=None)  # one below 1 makes prune a default
        items = load_captioned_set(dataset, root, split, untrimmed=untrimmed).first(limit)
        if items.missing and not allow_missing:
            fail(f"{describe_missing(items.missing, items)}. --allow-missing scores the rest, and marks the result")
        captioner = load_captioner(
            model, revision, saliency, mode, policies[0], least, max_visual_tokens, min_keep, zoom, device
        )
        arms = [
            captioner.with_weighting(policy=name, keep_ratio=ratio, max_visual_tokens=max_visual_tokens)
            for ratio in ratios
            for name in policies
        ]
        generation = given(num_beams=num_beams, max_new_tokens=max_new_tokens, prompt=prompt)
        settings = describe_runs(arms, items, num_frames=num_frames, frames=frames, batch_size=batch_size, **generation)
    evaluate_captions.run(arms, items, settings, allow_missing, workers, output, as_json)


def _check_options(context: typer.Context, task: str) -> None:
    """Refuse an unknown task, and options that would do nothing for a known one."""
    if task not in _ONLY:
        fail(f"unknown task {task!r}, allowed: {', '.join(_ONLY)}")
    for other, names in _ONLY.items():
        for name in names if other != task else ():
            source = context.get_parameter_source(name)
            if source is not None and source.name != "DEFAULT":
                fail(f"--{name.replace('_', '-')} belongs to --task {other}, got --task {task}")
