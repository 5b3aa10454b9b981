"""``salcap distill``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from salcap.cli.console import app, wrong_use


@app.command()
def distill(config: Annotated[Path, typer.Argument(help="A YAML file such as configs/uva_net.yaml.")]) -> None:
    """Train a saliency student from teachers; started again, a run goes on where it stopped."""
    from salcap.config import load_config
    from salcap.distill.settings import Distillation

    with wrong_use():
        settings = load_config(config, Distillation)
    from salcap.distill.trainer import Distiller

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with wrong_use():
        distiller = Distiller(settings, progress)
    print(distiller.run())
