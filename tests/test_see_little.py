"""A captioner that reads all frames teaches itself to read few of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from test_captioner_loading import save
from test_captioners import make_clip, make_map
from test_finetune import clips  # noqa: F401  # a fixture

import salcap
from salcap.captioners import load_captioner
from salcap.config import Weighting
from salcap.frames import Frames
from salcap.training.finetune import FineTuner
from salcap.training.finetune_settings import ClipSource, FineTuning, SeeLittle
from salcap.training.see_little import SeeLittleTeacher, choose_few

PRUNE = Weighting("prune", "foveate", 0.5)


@pytest.fixture
def settings(clips, tmp_path) -> FineTuning:  # noqa: F811
    return FineTuning(
        output=str(tmp_path / "run"),
        captioner=save(tiny_models.mini(), tmp_path / "mini"),
        train=ClipSource("videos", str(clips), "train"),
        num_frames=4,
        saliency="spectral_residual",
        weighting=PRUNE,
        see_little=SeeLittle(2, prediction=1.0, representation=0.1),
        frozen=("encoder.trunk",),
        epochs=1,
        batch_size=3,
        learning_rate=3e-3,
        warmup_steps=1,
    )


def load(tiny: tiny_models.Tiny) -> Any:
    return load_captioner(tiny.model, tiny.processor)


def looking(*corners: int) -> tuple[Frames, torch.Tensor]:
    """A clip of as many frames and its maps, each with all its mass in one of four corners."""
    maps = torch.full((len(corners), 2, 2), 1e-6)
    for frame, corner in enumerate(corners):
        maps[frame].view(-1)[corner] = 1.0
    return make_clip(0, len(corners)), (maps / maps.sum((1, 2), keepdim=True)).log()


def test_few_frames_go_where_the_gaze_moves_or_evenly():
    clip, maps = looking(0, 0, 0, 0, 0, 3, 1, 2)
    (few,), (few_maps,) = choose_few([clip], [maps], SeeLittle(4))
    assert {5, 6, 7} <= set(few.pts_seconds.int().tolist())
    assert torch.equal(few.pixels, clip.pixels[few.pts_seconds.int().tolist()])
    assert torch.equal(few_maps, maps[few.pts_seconds.int().tolist()])
    (even,), none = choose_few([clip], None, SeeLittle(4, "uniform"))
    assert (even.pts_seconds.tolist(), none) == ([1, 3, 5, 7], None)


def test_the_loss_is_zero_where_the_student_sees_what_the_teacher_sees_and_grows_with_its_weights():
    captioner = load(tiny_models.mini())
    batch = [make_clip(0, 4), make_clip(1, 3)], [make_map(0, 4), make_map(1, 3)], PRUNE
    captions = [captioner.caption_ids(text, 9) for text in ("w1 w2", "w3 w4 w5 w6")]

    def loss(settings: SeeLittle, few: bool) -> float:
        teacher = SeeLittleTeacher(captioner, settings)
        theirs = teacher.give(*batch, captions)
        assert not any(given.logits.requires_grad for given in theirs)
        frames, maps = choose_few(*batch[:2], settings) if few else batch[:2]
        return float(teacher.loss(captioner.give(frames, maps, PRUNE, captions), theirs).detach())

    both, told, placed = SeeLittle(2, prediction=1.0), SeeLittle(2, prediction=1.0, representation=0.0), SeeLittle(2)
    assert loss(both, few=False) == pytest.approx(0.0, abs=1e-4)
    assert loss(both, few=True) > loss(told, few=True) > 0
    assert loss(replace(told, prediction=3.0), few=True) == pytest.approx(3 * loss(told, few=True), rel=1e-4)
    represented = replace(placed, prediction=0.0)
    first, second = (loss(replace(represented, representation=weight), few=True) for weight in (0.5, 1.0))
    assert 0 < 2 * first == pytest.approx(second, rel=1e-4)


def test_the_teacher_stays_what_the_captioner_was():
    captioner = load(tiny_models.mini())
    arguments = [make_clip(0)], [make_map(0)], PRUNE, [captioner.caption_ids("w1 w2", 9)]
    teacher = SeeLittleTeacher(captioner, SeeLittle(1))
    before = teacher.give(*arguments)[0].logits
    with torch.no_grad():
        captioner.model.decoder.transformer.wte.weight.add_(1.0)
    assert torch.equal(teacher.give(*arguments)[0].logits, before)
    assert not torch.allclose(captioner.give(*arguments)[0].logits, before)


def test_a_family_without_clip_encodings_can_learn_predictions_only():
    captioner = load(tiny_models.git())
    arguments = [make_clip(0)], [make_map(0)], PRUNE, [captioner.caption_ids("w1 w2", 9)]
    given = captioner.give(*arguments)
    only = SeeLittleTeacher(captioner, SeeLittle(1, representation=0.0))
    assert float(only.loss(given, only.give(*arguments)).detach()) == pytest.approx(0.0, abs=1e-4)
    both = SeeLittleTeacher(captioner, SeeLittle(1))
    with pytest.raises(ValueError, match="gives no clip encoding: representation must be 0"):
        both.loss(given, both.give(*arguments))


def test_a_run_distils_few_frames_and_its_trunk_stays_as_it_was(settings):
    tuner = FineTuner(settings)
    before = {name: value.clone() for name, value in tuner.captioner.model.state_dict().items()}
    looked = []
    original = tuner.captioner.give
    tuner.captioner.give = lambda frames, *rest: looked.extend(map(len, frames)) or original(frames, *rest)
    folder = tuner.run()
    assert set(looked) == {2}
    after = tuner.captioner.model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert "decoder.transformer.wte.weight" in changed
    assert not any(name.startswith("encoder.trunk") for name in changed)
    (record,) = (json.loads(line) for line in (Path(settings.output) / "log.jsonl").read_text().splitlines())

    plain = replace(
        settings, see_little=SeeLittle(2, prediction=0.0, representation=0.0), output=settings.output + "-2"
    )
    FineTuner(plain).run()
    (alone,) = (json.loads(line) for line in (Path(plain.output) / "log.jsonl").read_text().splitlines())
    assert record["loss"] > alone["loss"] > 0  # by what the teacher adds

    again = salcap.SaliencyCaptioner.from_pretrained(str(folder))
    assert again.caption(Path(settings.train.root) / "val0.mp4", 2, frames="saliency").text is not None


def test_validation_reads_few_frames_too(settings):
    validation = replace(settings.train, split="val", limit=2)
    tuner = FineTuner(replace(settings, validation=validation))
    looked = []
    original = tuner.captioner.generate
    tuner.captioner.generate = lambda frames, *rest, **more: (
        looked.extend(map(len, frames)) or original(frames, *rest, **more)
    )
    tuner.validate()
    assert looked == [2, 2]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_frames": 2}, "see_little reads 2 frames of more: num_frames must be above, got 2"),
        ({"num_frames": None}, "num_frames must be above, got None"),
        ({"weighting": Weighting(), "saliency": None}, "by 'saliency', which needs maps: give the weighting a mode"),
        ({"weighting": Weighting("prune+zoom")}, "not among the views of mode 'zoom'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(settings, **changes)


@pytest.mark.parametrize(
    "values, message",
    [
        ((0,), "num_frames of see_little must be at least 1, got 0"),
        ((1, "first"), "unknown frames 'first', allowed: uniform, saliency"),
        ((1, "uniform", -1.0), "prediction must be >= 0 and finite, got -1.0"),
        ((1, "uniform", 0.0, float("inf")), "representation must be >= 0 and finite, got inf"),
    ],
)
def test_a_teaching_that_cannot_be_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SeeLittle(*values)


def test_a_frozen_part_that_is_not_there_is_refused(settings):
    with pytest.raises(ValueError, match=r"no parameter's name begins with 'vision'; .*'encoder\.trunk'"):
        FineTuner(replace(settings, frozen=("vision",)))
