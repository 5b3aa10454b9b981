"""``salcap compare``."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from salcap.cli.captioning import Device, Model, Revision
from salcap.cli.console import AsJson, app, fail, given, number, print_columns, progress_bar, say, wrong_use
from salcap.strict_json import to_json

if TYPE_CHECKING:
    from salcap.evaluation.bootstrap import Difference
    from salcap.evaluation.comparison import ComparedArm, Comparison
    from salcap.evaluation.faithfulness import Faithfulness

_SCORES = ("bleu_4", "meteor", "rouge_l", "cider")


@app.command()
def compare(
    dataset: Annotated[str, typer.Option(help="msrvtt, msvd, videos, flickr8k-val, ...: see salcap evaluate --help.")],
    root: Annotated[Path, typer.Option(help="The data set's folder.")],
    split: Annotated[str | None, typer.Option(help="train, val, test, 1k-A, ...")] = None,
    model: Model = "salcap-mini",
    revision: Revision = None,
    saliency: Annotated[
        str | None, typer.Option(help="Backbones, by commas; default: none, four controls, student and teacher.")
    ] = None,
    mode: Annotated[str, typer.Option(help="One or several, by commas.")] = "prune",
    policy: Annotated[str | None, typer.Option(help="By commas; default: foveate,random,pool.")] = None,
    keep_ratio: Annotated[str | None, typer.Option(help="By commas; default: 0.25,0.5,1.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Backbone to hold the others against.")] = None,
    num_frames: Annotated[int | None, typer.Option(min=1)] = None,
    num_beams: Annotated[int, typer.Option(min=1)] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips of an arm's turn.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first clips.")] = None,
    metrics: Annotated[str | None, typer.Option(help="By commas; default: bleu,meteor,rouge_l,cider.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Of the bootstrap behind the intervals.")] = 2000,
    faithfulness: Annotated[
        int, typer.Option(min=0, help="First clips on which to measure deletion faithfulness of each backbone.")
    ] = 0,
    device: Device = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for comparison.json, .csv, report.html and records; killed, the same command goes on."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Caption a data set without saliency, with controls, with student and with teacher: quality and time.

    The arms take turns within one run. Intervals are 95 %, by paired bootstrap over the clips. Exit status 1 if a
    backbone, a metric or a clip was missing.
    """
    from salcap.datasets.registry import load_captioned_set
    from salcap.evaluation import comparison
    from salcap.evaluation.arm_records import can_go_on
    from salcap.evaluation.report import write_report
    from salcap.evaluation.samples import SampleCollector

    if output is not None and output.exists():
        if (output / "comparison.json").exists():
            fail(f"output {output} exists, and holds a finished comparison; name another folder")
        if not can_go_on(output):
            fail(f"output {output} exists, and is no comparison to go on with; name another folder")
        say(f"going on with {output}")
    with wrong_use():
        settings = given(
            saliency=_split(saliency),
            policy=_split(policy),
            keep_ratio=[float(ratio) for ratio in keep_ratio.split(",")] if keep_ratio else None,
            teacher=teacher,
            metrics=_split(metrics),
        )
        clips = load_captioned_set(dataset, root, split).first(limit)
        collector = SampleCollector()
        with progress_bar(len(clips.present), "comparing") as advance:
            result = comparison.compare(
                clips,
                model=model,
                mode=mode.split(","),
                batch_size=batch_size,
                num_frames=num_frames,
                num_beams=num_beams,
                draws=draws,
                faithfulness=faithfulness,
                revision=revision,
                device=device,
                records=output,
                observers=[] if output is None else [collector],
                progress=advance,
                **settings,
            )
        if output is not None:
            with (output / "comparison.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([_HEADINGS, *(_cells(row) for row in result.rows)])
            references = {item.id: item.captions for item in clips.items}
            write_report(result, output / "report.html", collector.samples, references)
            partial = output / "comparison.partial"  # of which there is a whole one when all else is there
            partial.write_text(to_json(result.to_dict(), indent=1), encoding="utf-8")
            os.replace(partial, output / "comparison.json")
    if as_json:
        print(to_json(result.to_dict()))
    else:
        _print(result)
    for name, why in {**result.missing, **result.missing_scores}.items():
        say(f"missing: {name}: {why}")
    for key, why in result.failures.items():
        say(f"error: {key}: {why}")
    if result.missing or result.missing_scores or result.failures:
        raise typer.Exit(1)


_HEADINGS = (
    *("arm", "tokens", *_SCORES),
    *(f"CIDEr - {baseline}" for baseline in ("none", "teacher", "random", "pool")),
    *("total ms", "p95", "saved", "peak MiB"),
)


def _print(result: Comparison) -> None:
    print(
        f"{result.num_clips} clips of {result.dataset} by {result.model} on {result.device} in {result.dtype},"
        f" {result.threads} threads; differences with their 95 % interval, {result.draws} draws."
    )
    print_columns(_HEADINGS, [_cells(row) for row in result.rows])
    for row in result.rows:
        for baseline, words in row.verdicts.items():
            print(f"{row.arm.name} against {baseline}: {words}")
    if result.faithfulness:
        print("Deletion faithfulness: log-probability of the caption without the least and the most salient half.")
        headings = ("backbone", "clips", "all kept", "least dropped", "most dropped", "faithfulness")
        print_columns(headings, [_faithfulness_cells(*item) for item in result.faithfulness.items()])


def _cells(row: ComparedArm) -> tuple[str, ...]:
    differences = []
    for baseline in ("none", "teacher", "random", "pool"):
        found = row.against.get(baseline, {}).get("cider")
        differences.append("" if found is None else _with_interval(found))
    return (
        row.arm.name,
        f"{row.visual_tokens:g}",
        *(number(row.scores[name]) for name in _SCORES),
        *differences,
        f"{row.ms['total']['p50']:.1f}",
        f"{row.ms['total']['p95']:.1f}",
        f"{row.time_saved:.1%}",
        "-" if row.peak_memory_mib is None else f"{row.peak_memory_mib:.0f}",
    )


def _faithfulness_cells(name: str, found: Faithfulness) -> tuple[str, ...]:
    means = (found.whole, found.least_dropped, found.most_dropped)
    return (name, str(found.num_clips), *map(number, means), _with_interval(found.difference))


def _with_interval(found: Difference) -> str:
    return f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def _split(names: str | None) -> list[str] | None:
    return None if names is None else names.split(",")
