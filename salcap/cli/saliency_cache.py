"""``salcap saliency-cache``."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from salcap.cli.captioning import Device
from salcap.cli.console import AsJson, app, fail, given, progress_bar, say, wrong_use
from salcap.strict_json import to_json


@app.command()
def saliency_cache(
    teacher: Annotated[str, typer.Option(help="Backbone (see salcap list), or path/to/file.py:factory of your own.")],
    output: Annotated[Path, typer.Option(help="Folder of the maps; one that was begun is gone on with.")],
    images: Annotated[Path | None, typer.Option(help="Folder of images, sub-folders included.")] = None,
    videos: Annotated[Path | None, typer.Option(help="Folder of videos, sub-folders included.")] = None,
    pattern: Annotated[str, typer.Option(help="Of the names of the files to read, such as '*.mp4'.")] = "*",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the maps.")] = "60x80",
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames of each video; default: 8.")] = None,
    weights: Annotated[Path | None, typer.Option(help="The teacher's file of weights, or its folder.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the teacher; may be repeated.")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Store a teacher's maps of all images or videos of a folder; exit status 1 if some could not be read."""
    sides = re.fullmatch(r"(\d+)x(\d+)", size)
    if sides is None:
        fail(f"--size must be HEIGHTxWIDTH such as 60x80, got {size!r}")
    if (images is None) == (videos is None):
        fail("give either --images or --videos")
    if images is not None and num_frames is not None:
        fail("--num-frames is for --videos; an image is one frame")
    source = images or videos
    assert source is not None
    options = _parse_options(option or [])

    from salcap.distill.map_cache import build_map_cache, list_files
    from salcap.saliency import create_saliency

    try:
        with wrong_use():
            model = create_saliency(teacher, **options, **given(path=weights))
    except TypeError as error:
        fail(str(error))
    with wrong_use(), progress_bar(len(list_files(source, pattern)), f"{teacher} maps") as advance:
        report = build_map_cache(
            model if device is None else model.to(device),
            source,
            output,
            "images" if images else "videos",
            pattern=pattern,
            size=(int(sides[1]), int(sides[2])),
            options=options,
            progress=advance,
            **given(num_frames=num_frames),
        )
    for name, warning in report.warnings.items():
        say(f"warning: {name}: {warning}")
    for name, reason in report.failures.items():
        say(f"error: {name}: {reason}")
    if as_json:
        print(to_json(dataclasses.asdict(report)))
    else:
        print(f"{report.num_written} written, {report.num_already_done} already there, {len(report.failures)} failed")
    if report.failures:
        raise typer.Exit(1)


def _parse_options(pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE as YAML reads the value: numbers, lists and true or false are what they look like."""
    import yaml

    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            fail(f"--option must be NAME=VALUE, got {pair!r}")
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            fail(f"--option {name} has a value that is not YAML: {value!r}")
    return options
