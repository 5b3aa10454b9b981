"""``salcap train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from salcap.cli.console import app, wrong_use


@app.command()
def train(
    config: Annotated[
        Path, typer.Argument(help="A YAML file such as configs/finetune/git.yaml or configs/salcap-mini.yaml.")
    ],
) -> None:
    """Fine-tune a captioner, or train the bundled one from scratch; started again, a run goes on where it stopped."""
    from salcap.config import load_any_config
    from salcap.training.finetune_settings import FineTuning
    from salcap.training.settings import CaptionerTraining

    with wrong_use():
        settings = load_any_config(config, {"captioner": FineTuning, "stages": CaptionerTraining})

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    trainer: Any
    with wrong_use():
        if isinstance(settings, FineTuning):
            from salcap.training.finetune import FineTuner

            trainer = FineTuner(settings, progress)
        else:
            from salcap.training.captioner import CaptionerTrainer

            trainer = CaptionerTrainer(settings, progress)
        folder = trainer.run()
    print(folder)
