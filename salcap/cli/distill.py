"""``salcap distill``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from salcap.cli.console import app, given, wrong_use


@app.command()
def distill(
    config: Annotated[Path, typer.Argument(help="A YAML file such as configs/uva_net.yaml.")],
    seed: Annotated[int | None, typer.Option(help="Instead of the config's.")] = None,
    output: Annotated[Path | None, typer.Option(help="Instead of the config's.")] = None,
) -> None:
    """Train a saliency student from teachers; started again, a run goes on where it stopped."""
    from salcap.config import load_config
    from salcap.distill.settings import Distillation

    with wrong_use():
        settings = load_config(config, Distillation)
        settings = replace(settings, **given(seed=seed, output=None if output is None else str(output)))
    from salcap.distill.trainer import Distiller

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with wrong_use():
        folder = Distiller(settings, progress).run()
    print(folder)
