"""``salcap train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from salcap.cli.console import app, wrong_use


@app.command()
def train(config: Annotated[Path, typer.Argument(help="A YAML file such as configs/salcap-mini.yaml.")]) -> None:
    """Train a captioner; started again, a run goes on where it stopped."""
    from salcap.config import load_config
    from salcap.training.settings import CaptionerTraining

    with wrong_use():
        settings = load_config(config, CaptionerTraining)
    from salcap.training.captioner import CaptionerTrainer

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with wrong_use():
        trainer = CaptionerTrainer(settings, progress)
    print(trainer.run())
