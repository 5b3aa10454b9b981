"""``salcap caption``."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from salcap.cli.captioning import (
    Device,
    Dtype,
    MaxVisualTokens,
    MinKeep,
    Mode,
    Model,
    NumBeams,
    Revision,
    Saliency,
    Workers,
    Zoom,
    load_captioner,
)
from salcap.cli.console import AsJson, app, given, progress_bar, say, wrong_use
from salcap.strict_json import to_json

if TYPE_CHECKING:
    from salcap.datasets.captioned_videos import CaptionedSet
    from salcap.manifest import Item


@app.command()
def caption(
    videos: Annotated[
        list[str] | None, typer.Argument(help="Video files, folders, glob patterns, manifests (.txt, .jsonl, .csv).")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Instead of videos a data set, by name: see salcap evaluate --help.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="The data set's folder.")] = None,
    split: Annotated[str | None, typer.Option(help="The data set's split.")] = None,
    num_frames: Annotated[
        int | None,
        typer.Option(min=1, help="Frames to look at; default: 8, or the model's most."),
    ] = None,
    frames: Annotated[
        str, typer.Option(help="uniform: evenly by time; saliency: more where the gaze moves.")
    ] = "uniform",
    saliency: Saliency = None,
    mode: Mode = None,
    policy: Annotated[str | None, typer.Option(help="top, stratified, foveate, random or pool.")] = None,
    keep_ratio: Annotated[float | None, typer.Option(help="Share of the patches to keep, in (0, 1].")] = None,
    max_visual_tokens: MaxVisualTokens = None,
    min_keep: MinKeep = None,
    zoom: Zoom = None,
    num_beams: NumBeams = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    start: Annotated[float | None, typer.Option(min=0, help="Start of the clip in seconds.")] = None,
    end: Annotated[float | None, typer.Option(min=0, help="End of the clip in seconds.")] = None,
    model: Model = "salcap-mini",
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Annotated[int | None, typer.Option(help="Of policy random; default: 0.")] = None,
    windows: Annotated[
        str | None, typer.Option(help="Caption each video in windows: of so many seconds, or shots, from cut to cut.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="A .jsonl file, with which the same command goes on; of one video .vtt or .srt.")
    ] = None,
    export: Annotated[
        list[Path] | None,
        typer.Option(
            help="When all is done, write the records as .csv, .json (COCO) or .parquet; of one video .vtt or .srt."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing output file.")] = False,
    recursive: Annotated[bool, typer.Option(help="Also videos in folders below.")] = False,
    retry_failed: Annotated[bool, typer.Option(help="Caption again what failed in earlier runs.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Most clips at work at once; default: 1 a stream, or any with tokens.")
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most visual tokens at work at once, padding among them.")
    ] = None,
    streams: Annotated[
        int | None,
        typer.Option(min=1, help="Batches at work at once; default: 2 on a CPU with threads for it, else 1."),
    ] = None,
    workers: Workers = None,
    time_limit: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds for reading one clip; default: 300 where processes read.")
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(help="Mark captions whose score is below this as low_confidence in the records, e.g. -1.5."),
    ] = None,
    shard: Annotated[str | None, typer.Option(help="I/N: the I-th of N parts; the last one done merges them.")] = None,
    as_json: AsJson = False,
) -> None:
    """Caption videos; exit status 1 if any of them failed."""
    from salcap.corpus import caption_corpus
    from salcap.datasets.captioned_videos import CaptionedSet, describe_missing
    from salcap.outputs import SUBTITLES, check_export, check_output, export_file, export_records

    exports = export or []
    said: list[dict[str, Any]] = []
    with wrong_use():
        part, parts, device, launched = _place(shard, device)
        items = _items(videos, recursive, start, end, dataset, root, split)
        present = items.present if isinstance(items, CaptionedSet) else items
        # of a data set's own files those that may be told from records, which have settings beside them
        notes = [] if root is None else [file for file in root.glob("*.jsonl") if not Path(f"{file}.settings").exists()]
        inputs = [*(videos or []), *(item.path for item in present if item.path is not None), *notes]
        num_items = len(present)
        if output is not None:
            check_output(output, (".jsonl", *SUBTITLES), num_items, overwrite, inputs)
        keeps = output is not None and output.suffix.lower() == ".jsonl"
        for path in exports:
            if output is None or not keeps:
                raise ValueError(f"--export {path} is made of the records: give --output with a .jsonl file")
            replaced = check_export(path, output, overwrite)
            check_output(path, (".csv", ".json", ".parquet", *SUBTITLES), num_items, replaced, inputs)

        with ExitStack() as stack:
            advance: Any = None

            def load() -> Any:
                nonlocal advance
                weighting = (mode, policy, keep_ratio, max_visual_tokens, min_keep, zoom)
                captioner = load_captioner(model, revision, saliency, *weighting, device, dtype, seed)
                advance = stack.enter_context(progress_bar(num_items, "captioning"))
                return captioner

            def report(record: dict[str, Any], done: int, total: int) -> None:
                advance(1, total)
                for warning in record["warnings"]:
                    say(f"warning: {record['path']}: {warning}")
                if record["error"] is not None:
                    say(f"error: {record['error']}")
                if as_json:
                    print(to_json(record), flush=True)
                elif record["caption"] is not None:
                    print(
                        record["caption"]
                        if num_items == 1 and windows is None
                        else f"{record['id']}\t{record['caption']}",
                        flush=True,
                    )
                if output is not None and not keeps:
                    said.append(record)

            try:
                summary = caption_corpus(
                    load,
                    items,
                    output if keeps else None,
                    num_frames=num_frames,
                    frames=frames,
                    batch_size=batch_size,
                    batch_tokens=batch_tokens,
                    num_streams=streams,
                    windows=windows,
                    num_workers=0 if num_items == 1 and windows is None and workers is time_limit is None else workers,
                    time_limit=time_limit,
                    shard=(part, parts),
                    overwrite=overwrite,
                    retry_failed=retry_failed,
                    min_score=min_score,
                    settings=given(dtype=dtype),
                    progress=report,
                    **given(num_beams=num_beams, max_new_tokens=max_new_tokens),
                )
            except KeyboardInterrupt:
                say("stopped; the same command goes on" if keeps else "stopped; with --output X.jsonl it could go on")
                raise typer.Exit(130) from None
        if output is not None and said:
            export_records(said, output)
        if summary.records is not None:
            for path in exports:
                export_file(Path(summary.records), path)
    kind = "videos" if windows is None else "windows"
    if summary.num_new < summary.num_items:
        say(f"{summary.num_items - summary.num_new} of {summary.num_items} {kind} were done before or by others")
    if summary.errors:
        classes = ", ".join(f"{name} {count}" for name, count in summary.errors.items())
        say(f"{summary.num_failed} of {summary.num_items} {kind} failed: {classes}")
    missing = items.missing if isinstance(items, CaptionedSet) else {}
    if isinstance(items, CaptionedSet) and missing:
        say(f"error: {describe_missing(missing, items)}")
    # a launcher ends all processes where one reports failure
    if (summary.errors or missing) and (not launched or summary.records is not None):
        raise typer.Exit(1)


def _items(
    videos: list[str] | None,
    recursive: bool,
    start: float | None,
    end: float | None,
    dataset: str | None,
    root: Path | None,
    split: str | None,
) -> list[Item] | CaptionedSet:
    """What to caption: videos, or a data set."""
    from salcap.datasets.registry import load_captioned_set
    from salcap.manifest import find_items

    if (not videos) == (dataset is None):
        raise ValueError(f"give videos or --dataset, got {videos or 'no videos'} and {dataset or 'no --dataset'}")
    if dataset is None:
        if root is not None or split is not None:
            raise ValueError("--root and --split belong to --dataset")
        return find_items(videos or [], recursive, start, end)
    if root is None or recursive or start is not None or end is not None:
        raise ValueError("--dataset needs --root, and takes no --recursive, --start or --end")
    return load_captioned_set(dataset, root, split)


def _place(shard: str | None, device: str | None) -> tuple[int, int, str | None, bool]:
    """This process's part, of how many, and its device: by ``--shard``, or by a launcher such as accelerate (True)."""
    rank, processes = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if processes > 1:
        if shard is not None:
            raise ValueError(f"give --shard or launch several processes, got {shard} and {processes} processes")
        local = os.environ.get("LOCAL_RANK", "0")
        return rank + 1, processes, f"cuda:{local}" if device == "cuda" else device, True
    # accelerate's simple launcher names a master for several processes, and starts one
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        say("accelerate launch started one process; several take --multi_gpu, in place of --cpu on CPUs too")
    found = re.fullmatch(r"(\d+)/(\d+)", shard or "1/1")
    if not found:
        raise ValueError(f"--shard must be I/N with I from 1 to N, got {shard!r}")
    return int(found[1]), int(found[2]), device, False
