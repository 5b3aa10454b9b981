"""Fine-tuning with saliency in the loop, on a tiny GIT and a few rendered clips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import tiny_models
import torch
import transformers
import yaml
from test_captioner_loading import save
from typer.testing import CliRunner

import salcap
from salcap.cli import app
from salcap.config import Weighting, load_any_config
from salcap.training import finetune
from salcap.training.finetune import FineTuner
from salcap.training.finetune_settings import ClipSource, FineTuning, LoraSettings
from salcap.training.settings import CaptionerTraining

ROOT = Path(__file__).resolve().parents[1]
COLOURS = {"w10 w11": (220, 30, 30), "w20 w21": (30, 200, 30), "w30 w31": (30, 30, 220)}
GREEDY: dict[str, Any] = {"num_frames": 2, "num_beams": 1, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A square of one of three colours that moves over grey, twice each: to train on and to validate."""
    root = tmp_path_factory.mktemp("clips")
    lines = []
    for split in ("train", "val"):
        for number, (words, colour) in enumerate(list(COLOURS.items()) * 2):
            name = f"{split}{number}.mp4"
            with av.open(str(root / name), "w") as container:
                stream = container.add_stream("libx264", rate=4, options={"threads": "1", "crf": "10"})
                stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
                for place in range(4):
                    picture = np.full((40, 48, 3), 120, np.uint8)
                    left = 4 * place + 3 * number
                    picture[8:28, left : left + 20] = colour
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                container.mux(stream.encode(None))
            lines.append(json.dumps({"video": name, "captions": [f"w1 {words}", f"w1 w2 {words}"], "split": split}))
    (root / "captions.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def git(tmp_path_factory) -> str:
    """With weights as transformers draws them, not as lively as in other tests: from those it learns quickly."""
    torch.manual_seed(0)
    tiny = tiny_models.git()
    fresh = replace(tiny, model=transformers.GitForCausalLM(tiny.model.config))
    return save(fresh, tmp_path_factory.mktemp("git"))


@pytest.fixture
def settings(clips, git, tmp_path) -> FineTuning:
    return FineTuning(
        output=str(tmp_path / "run"),
        captioner=git,
        train=ClipSource("videos", str(clips), "train"),
        num_frames=2,
        saliency="spectral_residual",
        weighting=Weighting("bias+prune", "foveate", 0.5, strength=0.5),
        keep_ratios=(0.25, 0.5, 1.0),
        learned_gain=True,
        epochs=3,
        batch_size=4,
        accumulation_steps=2,
        learning_rate=3e-3,
        warmup_steps=2,
        checkpoint_steps=100,
    )


def validation_of(settings: FineTuning) -> ClipSource:
    return replace(settings.train, split="val")


def records(settings: FineTuning) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(settings.output) / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return transformers.GitForCausalLM.from_pretrained(folder).state_dict()


def test_it_learns_and_its_folder_brings_back_model_saliency_weighting_and_gain(settings, clips, tmp_path):
    settings = replace(settings, epochs=20, batch_size=3, accumulation_steps=1, learning_rate=1e-2)
    tuner = FineTuner(settings)
    folder = tuner.run()
    log = records(settings)
    assert [record["epoch"] for record in log] == list(range(1, 21))
    assert log[-1]["loss"] < 0.3 * log[0]["loss"]
    assert log[-1]["gain"] != 1.0
    assert all(record["steps_per_second"] > 0 for record in log)

    again = salcap.SaliencyCaptioner.from_pretrained(str(folder))
    assert again.saliency.name == "spectral_residual"
    assert again.weighting == settings.weighting
    assert again.captioner.gain == pytest.approx(log[-1]["gain"], abs=1e-4)
    tuner.captioner.model.eval()
    for name in ("val0.mp4", "val1.mp4", "val2.mp4"):
        ours, theirs = (each.caption(clips / name, **GREEDY) for each in (tuner.pipeline, again))
        assert (ours.text, ours.visual_tokens) == (theirs.text, theirs.visual_tokens)
        assert ours.score == pytest.approx(theirs.score, abs=1e-5)  # weights lie at other addresses: kernels differ
        assert theirs.text.split()[-1] == f"w{int(name[3]) + 1}1"
    on = FineTuner(
        replace(settings, captioner=str(folder), output=str(tmp_path / "on"), validation=validation_of(settings))
    )
    assert on.validate() > 5.0

    learned = again.captioner.gain
    assert salcap.inspect(again).default_gain == learned
    again.captioner.gain = 3.0 * learned
    assert again.caption(clips / "val2.mp4", **GREEDY).score != theirs.score
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)  # transformers alone loads it as well
    processor = transformers.AutoProcessor.from_pretrained(folder)
    pixels = processor(images=np.zeros((40, 48, 3), np.uint8), return_tensors="pt").pixel_values
    assert plain.generate(pixel_values=pixels, max_new_tokens=2).shape[0] == 1


class Killed(Exception):
    pass


def test_a_killed_run_resumes_to_the_same_bits(settings, tmp_path, monkeypatch):
    whole = FineTuner(replace(settings, output=str(tmp_path / "whole")))
    assert whole.captioner.model.config.hidden_dropout_prob > 0  # so that it draws
    expected = weights(whole.run())
    settings = replace(settings, checkpoint_steps=3)
    original, steps = FineTuner._step, []

    def dying(self: FineTuner, *arguments: Any) -> float:
        if len(steps) == 4:
            raise Killed
        steps.append(original(self, *arguments))
        return steps[-1]

    monkeypatch.setattr(FineTuner, "_step", dying)
    with pytest.raises(Killed):
        FineTuner(settings).run()
    monkeypatch.setattr(FineTuner, "_step", original)
    with (Path(settings.output) / "log.jsonl").open("a") as file:
        file.write('{"step": 5}\n{"step": 6, "lo')  # after the checkpoint, the last one torn by the kill
    said: list[str] = []
    resumed = FineTuner(settings, said.append)
    found = weights(resumed.run())
    assert any(line.endswith(": step 4") for line in said)  # the end of the second epoch
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert resumed.captioner.gain == whole.captioner.gain != 1.0
    assert [record["step"] for record in records(settings)] == [2, 4, 6]
    with pytest.raises(ValueError, match="made with other settings"):
        FineTuner(replace(settings, learning_rate=1e-4)).run()


def test_the_parts_of_a_batch_add_up_to_the_batch(settings, tmp_path, monkeypatch):
    """Without dropout, whatever the number of parts, the step is the same but for rounding."""
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, values: values)
    moved = []
    for parts in (1, 3):
        output = str(tmp_path / str(parts))
        tuner = FineTuner(replace(settings, output=output, accumulation_steps=parts, epochs=1))
        moved.append(weights(tuner.run()))
    start = weights(Path(settings.captioner))
    for name, value in moved[0].items():
        rounding_alone = name.endswith(("k_proj.bias", "key.bias"))  # a softmax does not see what is added to all keys
        if not rounding_alone and not torch.equal(value, start[name]):
            assert (value - moved[1][name]).norm() < 0.05 * (value - start[name]).norm(), name


def test_lora_trains_adapters_only_and_merges_them(settings, clips):
    lively = save(tiny_models.git(), Path(settings.output) / "git")  # fresh words can say nothing, and stay as they are
    lora = LoraSettings(4, 8, ("query", "value"))
    settings = replace(settings, captioner=lively, lora=lora, epochs=4, learning_rate=2e-2)
    tuner = FineTuner(settings)
    trained = {name for name, parameter in tuner._task.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name or name == "log_gain" for name in trained)
    folder = tuner.run()
    assert records(settings)[-1]["loss"] < records(settings)[0]["loss"]
    before, after = weights(Path(settings.captioner)), weights(folder)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert changed
    assert all(name.split(".")[-2] in ("query", "value") for name in changed)
    tuner.captioner.model.eval()
    again = salcap.SaliencyCaptioner.from_pretrained(str(folder))
    ours, theirs = (each.caption(clips / "val0.mp4", **GREEDY) for each in (tuner.pipeline, again))
    assert ours.text == theirs.text
    assert ours.score == pytest.approx(theirs.score, abs=1e-4)
    everywhere = replace(settings, lora=LoraSettings(target_modules="all-linear"), frozen=("git.image_enc",), epochs=1)
    adapted = {name for name, p in FineTuner(everywhere)._task.named_parameters() if p.requires_grad}
    assert adapted
    assert not any("git.image_encoder" in name for name in adapted)
    with pytest.raises(ValueError, match=r"target_modules None do not fit 'git' \('all-linear' does\)"):
        FineTuner(replace(settings, lora=LoraSettings()))
    with pytest.raises(ValueError, match=r"'all-linear' do not fit 'git' but for what is frozen, git, output: "):
        FineTuner(replace(everywhere, frozen=("git", "output")))
    with pytest.raises(ValueError, match=r"target_modules .*no_such"):
        FineTuner(replace(settings, lora=LoraSettings(target_modules=("no_such",))))


def test_it_stops_early_and_keeps_the_best_epoch(settings, monkeypatch):
    scores = iter([0.3, 0.5, 0.4, 0.45, 9.9])
    kept = {}

    def validate(self: FineTuner) -> float:
        self.captioner.model.eval()
        score = next(scores)
        kept[score] = {name: value.clone() for name, value in self.captioner.model.state_dict().items()}
        return score

    monkeypatch.setattr(FineTuner, "validate", validate)
    settings = replace(settings, epochs=9, patience=2, validation=validation_of(settings))
    folder = FineTuner(settings).run()
    assert [record["cider"] for record in records(settings)] == [0.3, 0.5, 0.4, 0.45]
    best = weights(folder)
    assert all(torch.equal(best[name], kept[0.5][name]) for name in best)
    assert any(not torch.equal(best[name], kept[0.45][name]) for name in best)
    assert FineTuner(settings).run() == folder  # it stays where it stopped
    assert len(records(settings)) == 4


@pytest.mark.parametrize("mode", ["none", "zoom"])
def test_plain_and_zoomed_clips_are_trained_on_too(settings, mode):
    git = tiny_models.git(4)
    save(git, Path(settings.output) / "git")
    settings = replace(settings, captioner=str(Path(settings.output) / "git"), keep_ratios=(), learned_gain=False)
    settings = replace(settings, weighting=Weighting(mode), saliency="center" if mode == "zoom" else None, epochs=2)
    tuner = FineTuner(settings)
    looked = []
    original = tuner.captioner.give
    tuner.captioner.give = lambda frames, *rest: looked.append(len(frames[0])) or original(frames, *rest)
    again = salcap.SaliencyCaptioner.from_pretrained(str(tuner.run()))
    assert set(looked) == {4 if mode == "zoom" else 2}
    assert again.weighting.mode == mode
    assert records(settings)[-1]["loss"] < records(settings)[0]["loss"]


def test_a_prompt_is_trained_with_and_comes_back(settings, clips):
    blip = save(tiny_models.blip(), Path(settings.output) / "blip")
    settings = replace(settings, captioner=blip, prompt="w7 w8", epochs=1)
    again = salcap.SaliencyCaptioner.from_pretrained(str(FineTuner(settings).run()))
    plain = again.caption(clips / "val0.mp4", **GREEDY)
    asked = again.caption(clips / "val0.mp4", prompt="w7 w8", **GREEDY)
    assert plain.text == asked.text
    assert plain.text.startswith("w7 w8")
    other = again.caption(clips / "val0.mp4", prompt="", **GREEDY)
    assert not other.text.startswith("w7 w8")
    assert first_loss(settings) != first_loss(replace(settings, prompt=None, output=settings.output + "-plain"))


def first_loss(settings: FineTuning) -> float:
    FineTuner(settings).run()
    return records(settings)[0]["loss"]


def test_mini_keeps_its_saliency_where_it_always_had_it(clips, tmp_path):
    tiny = tiny_models.mini()
    folder = save(tiny, tmp_path / "mini")
    settings = FineTuning(
        output=str(tmp_path / "run"),
        captioner=folder,
        train=ClipSource("videos", str(clips), "train", limit=3),
        num_frames=2,
        saliency="center",
        weighting=Weighting("scale", strength=0.8),
        learned_gain=True,
        epochs=1,
        batch_size=3,
    )
    made = FineTuner(settings).run()
    config = json.loads((made / "config.json").read_text())
    assert config["encoder"]["saliency"]["strength"] == 0.8
    assert config["encoder"]["saliency"]["gain"] != 1.0
    assert "saliency" not in config
    assert salcap.SaliencyCaptioner.from_pretrained(str(made)).weighting == settings.weighting


@pytest.mark.parametrize("clean, learned", [(False, "W1 W2, w3 ."), (True, "w1 w2 w3")])
def test_captions_are_learned_as_they_are_or_clean(settings, clips, tmp_path, clean, learned):
    listed = tmp_path / "listed"
    listed.mkdir()
    (listed / "a.mp4").write_bytes((clips / "val0.mp4").read_bytes())
    (listed / "captions.jsonl").write_text(json.dumps({"video": "a.mp4", "captions": ["W1  W2, w3 ."]}))
    source = ClipSource("videos", str(listed))
    tuner = FineTuner(replace(settings, train=source, clean_captions=clean, batch_size=1, epochs=1))
    heard = []
    original = tuner.captioner.caption_ids
    tuner.captioner.caption_ids = lambda text, *rest: heard.append(" ".join(text.split())) or original(text, *rest)
    tuner.run()
    assert heard == [learned]


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_command_trains_and_prints_the_folder(settings, clips, tmp_path):
    values = {
        "output": str(tmp_path / "by-command"),
        "captioner": settings.captioner,
        "train": {"dataset": "videos", "root": str(clips), "split": "train", "limit": 2},
        "num_frames": 1,
        "epochs": 1,
    }
    result = CliRunner().invoke(app, ["train", str(write(tmp_path / "a.yaml", values))])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "by-command" / "model")
    assert '"loss"' in result.stderr


KINDS = {"captioner": FineTuning, "stages": CaptionerTraining}


@pytest.mark.parametrize(
    "values, message",
    [
        ({"output": "x"}, "exactly one of the keys 'captioner' .FineTuning. or 'stages' .CaptionerTraining.*'output'"),
        ({"captioner": "x", "stages": []}, "exactly one of the keys"),
        ({"captioner": "x", "output": "y"}, "missing 1 required positional argument: 'train'"),
        ({"mixed_precision": "fp16"}, "unknown mixed_precision 'fp16', allowed: no, bf16"),
        ({"keep_ratios": [0.5]}, "keep_ratios do nothing in mode 'none'"),
        ({"keep_ratios": [0.0], "weighting": {"mode": "prune"}}, "keep_ratios must be in"),
        ({"learned_gain": True, "weighting": {"mode": "prune"}}, "learned_gain needs mode 'scale' or 'bias'"),
        ({"learned_gain": True, "weighting": {"mode": "bias", "strength": 0}}, "a strength above 0"),
        ({"saliency": "center"}, "saliency 'center' does nothing in mode 'none'"),
        ({"patience": 2}, "patience 2 needs validation"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0, got -1.0"),
        ({"lora": {"rank": 0}}, "rank and alpha must be at least 1"),
        ({"weighting": {"mode": "prun"}}, "unknown mode 'prun'.*did you mean 'prune'"),
        ({"train": {"dataset": "msrvt", "root": "."}}, "unknown dataset 'msrvt'.*did you mean 'msrvtt'"),
        ({"learn_rate": 1.0}, "unknown key 'learn_rate'; did you mean 'learning_rate'"),
    ],
)
def test_a_config_that_cannot_work_is_refused(values, message, tmp_path):
    whole = {"output": "o", "captioner": "c", "train": {"dataset": "videos", "root": "."}, **values}
    path = write(tmp_path / "c.yaml", values if {"output", "captioner"} & values.keys() else whole)
    with pytest.raises(ValueError, match=message):
        load_any_config(path, KINDS)


def test_data_and_captioners_that_do_not_fit_are_refused(settings, clips, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="takes 1 to 3 frames, got 4"):
        FineTuner(replace(settings, num_frames=4))
    with pytest.raises(ValueError, match="takes no text, got prompt 'w7'"):
        FineTuner(replace(settings, prompt="w7"))
    lines = (clips / "captions.jsonl").read_text() + '\n{"video": "gone.mp4", "captions": ["w1"], "split": "train"}'
    (clips / "more.jsonl").write_text(lines)
    source = ClipSource("videos", str(clips / "more.jsonl"), "train")
    with pytest.raises(
        ValueError, match=r"1 of 7 items of videos are missing: gone.mp4: no video file \(allow_missing"
    ):
        FineTuner(replace(settings, train=source))
    assert len(FineTuner(replace(settings, train=replace(source, allow_missing=True))).clips.items) == 6
    for name, rows, message in (
        ("one", [["w1"]], "CIDEr .* needs 2 clips or more, got 1"),
        ("wordless", [["."], ["!"]], "no reference holds a word"),
    ):
        video = next(clips.glob("*.mp4")).name
        lines = [json.dumps({"video": video, "id": str(n), "captions": each}) for n, each in enumerate(rows)]
        (clips / f"{name}.jsonl").write_text("\n".join(lines))
        with pytest.raises(ValueError, match=f"validation: {message}"):
            FineTuner(replace(settings, validation=ClipSource("videos", str(clips / f"{name}.jsonl"))))

    class Old(finetune.load_captioner(settings.captioner).__class__):  # type: ignore[misc]
        def write(self, batch: Any, inputs: Any, generation: Any) -> Any:
            return self.model.generate(**inputs, max_new_tokens=2)

    monkeypatch.setitem(salcap.captioners.CAPTIONER_FAMILIES, "git", Old)
    with pytest.raises(ValueError, match="Old cannot be trained: its generate_batch does not end with write"):
        FineTuner(settings).run()


def test_bf16_trains(settings):
    """The numbers are not those of float32; what is learned is the same."""
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(True)
    try:
        run = replace(settings, mixed_precision="bf16", epochs=2)
        FineTuner(run).run()
        assert records(run)[-1]["loss"] < records(run)[0]["loss"]
    finally:
        AcceleratorState._reset_state(True)
        PartialState()
