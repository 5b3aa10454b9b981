"""The card of a trained network: what it is, what it learnt from and how, and how well it does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import yaml

from salcap import __version__
from salcap.distill.settings import DataSettings, Distillation, StageSettings
from salcap.saliency.streams import StreamModel


def write_card(folder: Path, model: StreamModel, settings: Distillation, scores: Mapping[str, float | None]) -> None:
    """Write ``README.md`` beside the weights, in the place of the Hub's own.

    Args:
        scores: of the last validation, named "<data set>_<metric>".
    """
    name = settings.student.name
    parts = [
        "---\nlibrary_name: salcap\ntags: [saliency]\n---",
        f"# {name}",
        f"A saliency backbone of {sum(p.numel() for p in model.parameters()):,} parameters for frames of"
        f" {model.input_size[0]}x{model.input_size[1]} pixels, trained by `salcap distill`, salcap {__version__}.",
        f'```python\nsalcap.create_saliency("{name}", checkpoint="FOLDER_OR_HUB_ID")\n```',
        "**Data.** " + "; ".join(_sources(settings.data)) + ". Whoever shares the weights must know their terms.",
        "**Training.** " + " Then ".join(_stage(stage) for stage in settings.stages) + f" Seed {settings.seed}.",
    ]
    if scores:
        rows = [f"| {key.replace('_', ' ', 1)} | {'-' if value is None else value} |" for key, value in scores.items()]
        parts.append("**Scores** on validation images:\n\n| | |\n|---|---|\n" + "\n".join(rows))
    parts.append("**Settings**\n\n```yaml\n" + _yaml(settings) + "```\n")
    (folder / "README.md").write_text("\n\n".join(parts), encoding="utf-8")


def _sources(data: DataSettings) -> list[str]:
    stills = [
        f"images of `{s.folder}`"
        + (f" with fixations ({s.fixations}, {s.split})" if s.fixations else "")
        + _maps(s.maps)
        for s in data.images
    ]
    return stills + [f"videos of `{source.folder}`{_maps(source.maps)}" for source in data.clips]


def _maps(maps: Mapping[str, str]) -> str:
    return f", maps of {', '.join(sorted(maps))}" if maps else ""


def _stage(stage: StageSettings) -> str:
    return f"{stage.steps:,} steps of {stage.batch_size} frames with {' + '.join(stage.losses)}."


def _yaml(settings: Distillation) -> str:
    """The settings as a config, defaults included."""
    return yaml.safe_dump(json.loads(json.dumps(asdict(settings))), sort_keys=False, width=120)
