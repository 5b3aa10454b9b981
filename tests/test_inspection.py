"""`salcap.inspect` on every family, and that its self-tests find what is wrong."""

from __future__ import annotations

import json

import pytest
import tiny_models
import tiny_multimodal
from typer.testing import CliRunner

import salcap
from salcap.captioners import load_captioner
from salcap.cli import app

FAMILIES = {**tiny_models.FAMILIES, **tiny_multimodal.FAMILIES}


def load(family: str, device: str = "cpu"):
    tiny = FAMILIES[family]()
    return load_captioner(tiny.model, tiny.processor, device=device)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_passes_all_self_tests(family):
    found = salcap.inspect(load(family))
    failed = {name: check.detail for name, check in found.checks.items() if check.passed is not True}
    assert not failed
    assert found.grid[0] * found.grid[1] > 1
    assert found.frames_per_token == (2 if family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl") else 1)


def test_the_bundled_captioner_passes_on_the_command_line():
    result = CliRunner().invoke(app, ["inspect", "salcap-mini", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["passed"]
    assert (found["grid"], found["tokens_per_frame"]) == ([14, 14], 196)
    assert all(check["passed"] for check in found["checks"].values())


def test_a_map_laid_down_the_wrong_way_is_found(monkeypatch):
    from salcap.captioners import family

    right = family.relative_saliency
    monkeypatch.setattr(family, "relative_saliency", lambda m, grid, box: right(m, grid, box).flip(-1))
    check = salcap.inspect(load("blip")).checks["bright square"]
    assert check.passed is False
    assert "shows the pixels of cell" in check.detail


def test_a_mode_that_does_nothing_is_found(monkeypatch):
    from salcap.captioners.visual_tokens import ClipTokens

    monkeypatch.setattr(ClipTokens, "scale", lambda self, tokens: tokens)
    check = salcap.inspect(load("git")).checks["maps change the output"]
    assert check.passed is False
    assert check.detail.startswith("scale:")


def test_a_neutral_setting_that_changes_a_bit_is_found(monkeypatch):
    from salcap.captioners.visual_tokens import ClipTokens

    right = ClipTokens.scale
    monkeypatch.setattr(
        ClipTokens,
        "scale",
        lambda self, tokens: right(self, tokens) * (1 + 1e-6 * ("scale" in self.weighting.modes)),
    )
    assert salcap.inspect(load("blip")).checks["neutral equals none"].passed is False


def test_a_hook_left_behind_is_found(monkeypatch):
    captioner = load("blip")
    right = type(captioner).generate_batch

    def leaving(self, batch, generation):
        self.model.vision_model.register_forward_hook(lambda *_: None)
        return right(self, batch, generation)

    monkeypatch.setattr(type(captioner), "generate_batch", leaving)
    found = salcap.inspect(captioner)
    assert found.checks["nothing left on the model"].passed is False
    assert not found.passed


def test_an_unknown_model_is_wrong_use(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    result = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert result.exit_code == 2
    assert "no captioner family for model type 'bert'" in result.output
