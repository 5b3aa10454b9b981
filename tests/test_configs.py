"""Every file in configs/ loads, and names only data, methods and networks that there are."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from salcap.config import load_config
from salcap.distill.methods import METHODS
from salcap.distill.settings import Distillation
from salcap.saliency import list_saliency
from salcap.saliency.trainable import TRAINABLE
from salcap.training.finetune_settings import FineTuning
from salcap.training.settings import CaptionerTraining

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_config_loads(path: Path) -> None:
    if path.stem.startswith("salcap-mini"):
        assert load_config(path, CaptionerTraining).stages
        return
    if "captioner" in yaml.safe_load(path.read_text()):
        tuning = load_config(path, FineTuning)
        assert (tuning.saliency is None) == (tuning.weighting.mode == "none")
        assert tuning.saliency in {None, *list_saliency()}
        return
    settings = load_config(path, Distillation)
    assert settings.student.name in TRAINABLE
    for stage in settings.stages:
        assert stage.losses.keys() <= METHODS.keys()
    with_maps = set.intersection(*(set(source.maps) for source in settings.data.images))
    for stage in settings.stages:
        soft = stage.losses.get("soft", {}).get("teachers", {})
        assert set(soft) <= with_maps
    for stage in settings.stages:
        for options in stage.losses.values():
            assert options.get("teacher") in {None, *settings.teachers}


def test_each_method_has_a_config() -> None:
    used: set[str] = set()
    for path in (CONFIGS / "distill").glob("*.yaml"):
        for stage in yaml.safe_load(path.read_text()).get("stages", ()):
            used |= stage["losses"].keys()
    assert used == METHODS.keys()
