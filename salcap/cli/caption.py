"""``salcap caption``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from salcap.cli.captioning import (
    MaxVisualTokens,
    MinKeep,
    Mode,
    Model,
    NumBeams,
    Revision,
    Saliency,
    Zoom,
    load_captioner,
)
from salcap.cli.console import AsJson, app, fail, given, progress_bar, say, wrong_use


@app.command()
def caption(
    videos: Annotated[list[Path], typer.Argument(help="Video files, or folders of them.")],
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
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    output: Annotated[Path | None, typer.Option(help="Write captions to a .jsonl, .vtt or .srt file.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing output file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Caption videos; exit status 1 if any of them failed."""
    from salcap.outputs import CaptionFile

    paths = _expand(videos)
    with wrong_use(), CaptionFile.opened(output, len(paths), overwrite) as file:
        captioner = load_captioner(
            model, revision, saliency, mode, policy, keep_ratio, max_visual_tokens, min_keep, zoom, device
        )
        generation = given(num_beams=num_beams, max_new_tokens=max_new_tokens)
        failed = 0
        with progress_bar(len(paths), "captioning") as advance:
            for path in paths:
                result = captioner.caption_batch([path], num_frames, start, end, frames, **generation)[0]
                file.write(result)
                advance(1)
                for warning in result.warnings:
                    say(f"warning: {path}: {warning}")
                if result.error is not None:
                    failed += 1
                    say(f"error: {result.error}")
                if as_json:
                    print(json.dumps(result.to_dict(), ensure_ascii=False), flush=True)
                elif result.text is not None:
                    print(result.text if len(paths) == 1 else f"{path}\t{result.text}", flush=True)
    if failed:
        say(f"{failed} of {len(paths)} videos failed")
        raise typer.Exit(1)


def _expand(videos: list[Path]) -> list[Path]:
    """Folders become the files right inside them, by name; hidden files are left out."""
    paths: list[Path] = []
    for video in videos:
        if video.is_dir():
            inside = sorted(p for p in video.iterdir() if not p.is_dir() and not p.name.startswith("."))
            if not inside:
                fail(f"folder {video} holds no files")
            paths += inside
        else:
            paths.append(video)
    return paths
