"""Captioners from folders, ids and loaded models; the registry; what is imported."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from test_captioners import FAMILIES, make_clip, make_map

import salcap
from salcap.captioners import CAPTIONER_FAMILIES, load_captioner, register_captioner
from salcap.captioners.blip import BlipCaptioner
from salcap.captioners.vision_encoder_decoder import VisionEncoderDecoderCaptioner
from salcap.config import Weighting


def save(tiny: tiny_models.Tiny, folder: Path, dtype: torch.dtype = torch.float32) -> str:
    tiny.model.to(dtype).save_pretrained(folder)
    tiny.model.to(torch.float32)
    for part in tiny.processor if isinstance(tiny.processor, tuple) else (tiny.processor,):
        part.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("as_path", [str, Path])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_captions_as_the_model_it_was_saved_from(family, as_path, tmp_path):
    tiny = tiny_models.FAMILIES[family]()
    folder = save(tiny, tmp_path / family)
    loaded, given = load_captioner(as_path(folder)), load_captioner(tiny.model, tiny.processor)
    assert (loaded.name, loaded.revision) == (folder, None)
    assert loaded.read_options == given.read_options != {}
    weighting, clips, maps = Weighting("prune", keep_ratio=0.5), [make_clip(0)], [make_map(0)]
    (ours,), (theirs,) = (c.generate(clips, maps, weighting, max_new_tokens=5) for c in (loaded, given))
    assert ours.text == theirs.text
    assert ours.score == pytest.approx(theirs.score, abs=1e-5)  # weights lie at other addresses: kernels differ
    assert loaded.preprocess.image_processor.backend == "pil"


@pytest.mark.parametrize(
    "dtype, expected",
    [(None, torch.float32), ("auto", torch.float16), ("bfloat16", torch.bfloat16), (torch.float64,) * 2],
)
def test_dtype_is_float32_unless_asked(dtype, expected, tmp_path):
    captioner = load_captioner(save(tiny_models.git(), tmp_path, torch.float16), dtype=dtype)
    assert captioner.model.dtype == expected
    (text,) = captioner.generate(
        [make_clip(0)], [make_map(0)], Weighting("scale+bias+prune", keep_ratio=0.5), max_new_tokens=5
    )
    assert text.text


def test_a_loaded_model_keeps_its_commit_name_and_evaluation_mode():
    tiny = tiny_models.blip()
    tiny.model.config._commit_hash = "0123abc"
    tiny.model.train()
    captioner = load_captioner(tiny.model, tiny.processor, dtype="float64")
    assert (captioner.name, captioner.revision) == ("BlipForConditionalGeneration", "0123abc")
    assert not tiny.model.training
    assert tiny.model.dtype == torch.float64


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    folder = save(tiny_models.blip(), tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["text_decoder.bert.encoder.layer.1.crossattention.self.key.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks 1 weights of BlipForConditionalGeneration \(text_decoder.bert.encoder"
    ):
        load_captioner(folder)


def test_a_pooler_that_captioning_never_reads_may_be_missing(tmp_path):
    folder = save(tiny_models.vision_encoder_decoder(), tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {key: value for key, value in load_file(file).items() if "pooler" not in key}
    save_file(weights, file, {"format": "pt"})
    assert load_captioner(folder).generate([make_clip(0)], None, Weighting(), max_new_tokens=5)[0].text


def test_a_hub_id_without_network_says_what_to_do():
    with pytest.raises(OSError, match=r"'some-one/no-such-captioner'.*HF_HUB_OFFLINE.*path of a local folder"):
        load_captioner("some-one/no-such-captioner")


def test_a_misspelt_bundled_name_is_corrected():
    with pytest.raises(OSError, match="'salcap-mimi'; did you mean 'salcap-mini'"):
        load_captioner("salcap-mimi")


@pytest.mark.parametrize("content", [None, {}, {"hidden_size": 3}])
def test_a_folder_that_is_no_model_says_so(content, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(OSError, match=f"folder {tmp_path} does not hold a whole captioner.*config.json"):
        load_captioner(tmp_path)


def test_the_bundled_name_stands_for_its_folder_in_the_package(tmp_path, monkeypatch):
    from salcap.captioners import registry

    assert Path(salcap.__file__).parent / "weights" == registry.BUNDLED_FOLDER
    folder = save(tiny_models.git(), tmp_path / "salcap-mini")
    monkeypatch.setattr("salcap.captioners.registry.BUNDLED_FOLDER", tmp_path)
    captioner = load_captioner("salcap-mini")
    assert (captioner.name, captioner.model.name_or_path) == ("salcap-mini", folder)


def test_an_unknown_model_type_lists_the_families_and_how_to_add_one(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip_3"}))
    with pytest.raises(ValueError, match=r"type 'blip_3'; there are blip, .* git, .*register_captioner\('blip_3'"):
        load_captioner(tmp_path)


@pytest.mark.parametrize(
    "model, processor, message",
    [
        (tiny_models.blip().model, None, "needs its processor"),
        (tiny_models.blip().model, tiny_models.tokenizer(), "must have an image_processor and a tokenizer"),
        ("some/model", tiny_models.tokenizer(), "brings its own processor"),
        (torch.nn.Linear(1, 1), None, "got Linear"),
        (tiny_models.blip().model.vision_model, tiny_models.blip().processor, "type 'blip_vision_model'"),
    ],
)
def test_wrong_arguments_are_refused(model, processor, message):
    with pytest.raises(ValueError, match=message):
        load_captioner(model, processor)


@pytest.mark.parametrize(
    "model, options, message",
    [
        ("some/model", {"device": "cpu", "device_map": "auto"}, "give device or device_map, got 'cpu' and 'auto'"),
        (tiny_models.blip().model, {"attn_implementation": "eager"}, "are for a model that is loaded here"),
        (tiny_models.blip().model, {"device_map": "auto"}, "are for a model that is loaded here"),
    ],
)
def test_placement_that_cannot_be_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        load_captioner(model, None if model == "some/model" else tiny_models.blip().processor, **options)


def test_a_model_of_the_family_but_for_another_task_is_refused():
    import transformers

    tiny = tiny_models.blip()
    other = transformers.BlipForQuestionAnswering(tiny.model.config)
    with pytest.raises(ValueError, match="needs a BlipForConditionalGeneration, got BlipForQuestionAnswering"):
        load_captioner(other, tiny.processor)


class Renamed(BlipCaptioner):
    default_saliency = "uniform"


class OfDeit(VisionEncoderDecoderCaptioner):
    default_saliency = "uniform"


@pytest.mark.parametrize("family", [Renamed, f"{__name__}:Renamed"])
def test_registering_a_family_is_all_it_takes(family, monkeypatch):
    monkeypatch.setattr("salcap.captioners.registry.CAPTIONER_FAMILIES", {})
    register_captioner("blip", family)
    tiny = tiny_models.blip()
    assert type(load_captioner(tiny.model, tiny.processor)) is Renamed


def test_a_family_for_one_encoder_goes_before_the_general_one(tmp_path, monkeypatch):
    monkeypatch.setitem(CAPTIONER_FAMILIES, "vision-encoder-decoder/deit", OfDeit)
    for encoder, kind in (("deit", OfDeit), ("vit", VisionEncoderDecoderCaptioner)):
        tiny = tiny_models.vision_encoder_decoder(encoder)
        assert type(load_captioner(tiny.model, tiny.processor)) is kind
        assert type(load_captioner(save(tiny, tmp_path / encoder))) is kind


@pytest.mark.parametrize("family", ["NoModule", ":Class", "module:"])
def test_registering_what_names_no_class_is_refused(family):
    with pytest.raises(ValueError, match="must be a class or 'module:Class'"):
        register_captioner("mine", family)


def run_python(code: str, path: Any = "") -> subprocess.CompletedProcess[str]:
    folders = f"{path}:{Path(__file__).parent}:{Path(salcap.__file__).parents[1]}"
    environment = {"PYTHONPATH": folders, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": ""}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_transformers_and_torchvision_are_imported_when_they_must_be(tmp_path):
    folder = save(tiny_models.git(), tmp_path)
    done = run_python(
        f"""
        import sys
        import salcap.captioners
        assert not {{"transformers", "torchvision"}} & sys.modules.keys(), "before a captioner is loaded"
        from test_captioners import make_clip, make_map
        captioner = salcap.captioners.load_captioner({folder!r})
        weighting = salcap.config.Weighting("scale+prune", keep_ratio=0.5)
        print(captioner.generate([make_clip(0)], [make_map(0)], weighting, max_new_tokens=2)[0].visual_tokens)
        import transformers  # which imports torchvision itself wherever it is installed
        assert transformers.utils.is_torchvision_available() or "torchvision" not in sys.modules
        """
    )
    assert (done.stdout, done.returncode) == ("18\n", 0), done.stderr


def test_a_torchvision_that_does_not_fit_is_named(tmp_path):
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    done = run_python(
        """
        from salcap.captioners import registry
        registry._find_family("blip", None)
        """,
        path=tmp_path,
    )
    assert "transformers cannot import the torchvision that is installed" in done.stderr
    assert done.stderr.rstrip().endswith("operator torchvision::nms does not exist")


def test_loading_draws_no_progress_bar_and_leaves_the_users_setting(tmp_path, capfd):
    from transformers.utils import logging as hf_logging

    tiny = tiny_models.FAMILIES["git"]()
    tiny.model.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    capfd.readouterr()
    load_captioner(str(tmp_path))
    assert "Loading weights" not in capfd.readouterr().err
    assert hf_logging.is_progress_bar_enabled()
