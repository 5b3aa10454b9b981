"""``salcap saliency``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from salcap.cli.captioning import Device, Revision, load_captioner
from salcap.cli.console import AsJson, app, fail, progress_bar, say, wrong_use
from salcap.strict_json import to_json


@app.command()
def saliency(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    output: Annotated[Path, typer.Option(help="overlay.mp4: every frame; sheet.png: a contact sheet of some.")],
    show: Annotated[
        str, typer.Option(help="overlay: heat over the frames; heat: alone; patches: what a captioner keeps.")
    ] = "overlay",
    backbone: Annotated[
        str | None,
        typer.Option("--saliency", help="Backbone (see salcap list); default: uva_net, or the captioner's own."),
    ] = None,
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames of the contact sheet; default: 8.")] = None,
    start: Annotated[float | None, typer.Option(min=0, help="Start of the part in seconds.")] = None,
    end: Annotated[float | None, typer.Option(min=0, help="End of the part in seconds.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Of patches: salcap-mini (default), a hub id or a local folder.")
    ] = None,
    revision: Revision = None,
    policy: Annotated[
        str | None, typer.Option(help="Of patches: top, stratified, foveate, random or pool; default: the captioner's.")
    ] = None,
    keep_ratio: Annotated[
        float | None, typer.Option(help="Of patches: share to keep, in (0, 1]; default: the captioner's.")
    ] = None,
    device: Device = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing output file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Draw where people look in a video, or what a captioner keeps; exit status 1 if the file cannot be read."""
    captioning = {"--model": model, "--revision": revision, "--policy": policy, "--keep-ratio": keep_ratio}
    needless = [name for name, value in captioning.items() if value is not None]
    if needless and show != "patches":
        fail(f"{', '.join(needless)} belong to --show patches, got --show {show}")

    from salcap.pictures import draw_saliency
    from salcap.saliency import create_saliency
    from salcap.video import VideoDecodeError

    try:
        with wrong_use():
            looker: Any
            if show == "patches":
                looker = load_captioner(
                    model or "salcap-mini", revision, backbone, None, policy, keep_ratio, None, None, None, device
                )
            else:
                looker = create_saliency(backbone or "uva_net")
                looker = looker if device is None else looker.to(device)
            with progress_bar(0, "drawing") as advance:
                drawing = draw_saliency(
                    video,
                    output,
                    looker,
                    show,
                    num_frames=num_frames,
                    start_seconds=start,
                    end_seconds=end,
                    overwrite=overwrite,
                    progress=advance,
                )
    except VideoDecodeError as error:
        say(f"error: {error}")
        raise typer.Exit(1) from error
    for warning in drawing.warnings:
        say(f"warning: {video}: {warning}")
    if as_json:
        print(to_json({**asdict(drawing), "path": str(drawing.path)}))
    else:
        span = f"{drawing.start_seconds:.2f} to {drawing.end_seconds:.2f} s"
        print(f"{drawing.path}: {drawing.num_frames} frames, {span}")
