"""``salcap plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from salcap.cli.console import app, wrong_use


@app.command()
def plot(
    source: Annotated[Path, typer.Argument(help="Folder of a training, or a file with a benchmark's JSON line.")],
    output: Annotated[Path, typer.Option(help="A .png or .svg file.")],
    overwrite: Annotated[bool, typer.Option(help="Replace an existing output file.")] = False,
) -> None:
    """Draw training curves or a benchmark's speeds; `salcap compare` draws its own, in report.html."""
    from salcap.pictures.plots import draw_plot

    with wrong_use():
        print(draw_plot(source, output, overwrite))
