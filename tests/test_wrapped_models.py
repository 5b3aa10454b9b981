"""Models that are placed, quantised, wrapped or adapted, and weights whose names a wrapper changed."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_multimodal
import torch
from safetensors.torch import load_file, save_file
from test_captioner_loading import save
from test_captioners import make_clip, make_map

import salcap
from salcap.captioners import load_captioner
from salcap.captioners.registry import check_captioner
from salcap.captioners.weights import extra_prefix
from salcap.config import Weighting


def words(captioner: Any, num_frames: int = 2) -> tuple[str, float]:
    weighting = Weighting("scale+prune", keep_ratio=0.5)
    (text,) = captioner.generate([make_clip(0, num_frames)], [make_map(0, num_frames)], weighting, max_new_tokens=5)
    return text.text, round(text.score, 4)


def adapted(model: Any, **options: Any) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False, **options)
    return peft.get_peft_model(model, config)


ON_DISK = {  # the first parts decide which device a model names as its own
    "git": ("git.image_encoder", "git.encoder", "git.visual_projection"),
    "blip": ("vision_model", "text_decoder"),
    "vision_encoder_decoder": ("decoder",),
}


@pytest.mark.parametrize("family", ON_DISK)
def test_a_model_that_lies_partly_on_disk_captions_where_it_is(family, tmp_path):
    tiny = tiny_models.FAMILIES[family]()
    save(tiny, tmp_path / "model")
    parts = {name for name, _ in tiny.model.named_children()} - {"git"}
    if family == "git":
        parts |= {f"git.{name}" for name, _ in tiny.model.git.named_children()}
    places = {part: "disk" if part in ON_DISK[family] else "cpu" for part in parts}
    model = type(tiny.model).from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offloaded"
    )
    captioner = load_captioner(model, tiny.processor)
    assert any(parameter.is_meta for parameter in model.parameters())
    assert words(captioner) == words(load_captioner(tiny.model, tiny.processor))


def test_moving_an_offloaded_model_is_refused_in_the_words_of_its_library(tmp_path):
    tiny = tiny_models.git()
    save(tiny, tmp_path / "model")
    places = {name: "disk" for name, _ in tiny.model.named_children()}
    model = type(tiny.model).from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offloaded"
    )
    with pytest.raises(RuntimeError, match="can't move a model that has some modules offloaded"):
        load_captioner(model, tiny.processor, device="cpu")


@pytest.mark.parametrize("asked", [{}, {"device": "cpu"}, {"dtype": "float64"}])
def test_a_loaded_model_is_moved_or_cast_only_as_asked(asked, monkeypatch):
    tiny, calls = tiny_models.git(), []
    monkeypatch.setattr(tiny.model, "to", lambda *given, **named: calls.append((given, named)))
    load_captioner(tiny.model, tiny.processor, **asked)
    expected = {name: torch.float64 if name == "dtype" else value for name, value in asked.items()}
    assert calls == ([((), expected)] if asked else [])


def test_a_quantised_folder_keeps_the_precision_it_was_made_for(tmp_path, monkeypatch):
    from salcap.captioners.git import GitCaptioner

    tiny, seen = tiny_models.git(), []
    tiny.model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    tiny.model.config.save_pretrained(tmp_path)
    monkeypatch.setattr(GitCaptioner, "from_pretrained", classmethod(lambda *_, **named: seen.append(named["dtype"])))
    load_captioner(str(tmp_path))
    load_captioner(str(tmp_path), dtype="float32")
    assert seen == ["auto", "float32"]


WRAPPERS = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "data parallel": torch.nn.DataParallel,
    "both": lambda model: torch.compile(torch.nn.DataParallel(model), backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_model_captions_as_the_one_inside(wrap):
    tiny = tiny_models.git()
    assert words(load_captioner(wrap(tiny.model), tiny.processor)) == words(load_captioner(tiny.model, tiny.processor))


@pytest.mark.parametrize("wrap", [lambda model: model, WRAPPERS["compiled"]], ids=["plain", "compiled"])
@pytest.mark.parametrize("make", [tiny_models.git, tiny_multimodal.FAMILIES["qwen2_5_vl"]], ids=["git", "qwen2_5_vl"])
def test_an_adapted_model_captions_as_the_merged_one(make, wrap):
    tiny = make()
    plain = words(load_captioner(tiny.model, tiny.processor))
    tiny.model.config._commit_hash = "0123abc"
    model = adapted(tiny.model)
    captioner = load_captioner(wrap(model), tiny.processor)
    found = words(captioner)
    assert captioner.revision is None  # so that records hold a hash of the weights, the adapter's with them
    assert found != plain
    text, score = words(load_captioner(model.merge_and_unload(), tiny.processor))
    assert found == (text, pytest.approx(score, abs=2e-3))


def test_an_adapters_folder_loads_its_base_model_too(tmp_path):
    tiny = tiny_models.git()
    base = type(tiny.model).from_pretrained(save(tiny, tmp_path / "base"))
    model = adapted(base)
    model.save_pretrained(tmp_path / "adapter")
    check_captioner(str(tmp_path / "adapter"))
    captioner = load_captioner(str(tmp_path / "adapter"))
    assert (captioner.name, captioner.revision) == (str(tmp_path / "adapter"), None)
    assert words(captioner) == words(load_captioner(model, tiny.processor))
    assert salcap.SaliencyCaptioner.from_pretrained(str(tmp_path / "adapter")).caption(make_clip(0), 2).text


def test_an_adapter_that_names_no_base_model_says_what_to_do(tmp_path):
    model = adapted(tiny_models.git().model)
    model.peft_config["default"].base_model_name_or_path = None
    model.save_pretrained(tmp_path)
    text = (tmp_path / "adapter_config.json").read_text()
    assert '"base_model_name_or_path": ""' in text or '"base_model_name_or_path": null' in text
    with pytest.raises(ValueError, match=r"does not name its base model.*PeftModel.from_pretrained"):
        load_captioner(str(tmp_path))


def test_a_learnt_prompt_is_refused():
    peft = pytest.importorskip("peft")
    tiny = tiny_models.git()
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=2, num_layers=2, token_dim=32, num_attention_heads=2
    )
    model = peft.get_peft_model(tiny.model, config)
    with pytest.raises(ValueError, match="PROMPT_TUNING is not part of the model's layers"):
        load_captioner(model, tiny.processor)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"captioner.{name}",
        lambda name: name.replace("git.", "git._orig_mod."),
        lambda name: name.replace("git.encoder.", "git.encoder._orig_mod."),
    ],
    ids=["compiled", "data parallel", "peft", "of the user's own", "within", "deep within"],
)
def test_names_that_differ_by_a_prefix_are_loaded_without_it(rename, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # to where pytest listens
    tiny = tiny_models.git()
    folder, file = save(tiny, tmp_path), tmp_path / "model.safetensors"
    save_file({rename(name): value for name, value in load_file(file).items()}, file, {"format": "pt"})
    assert words(load_captioner(folder)) == words(load_captioner(tiny.model, tiny.processor))
    assert "LOAD REPORT" not in caplog.text  # nothing is missing in the end


def test_names_that_differ_otherwise_are_said(tmp_path):
    folder, file = save(tiny_models.git(), tmp_path), tmp_path / "model.safetensors"
    save_file({name[::-1]: value for name, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d+ weights of GitForCausalLM \(.*it has others instead \(0.gnidd"):
        load_captioner(folder)


def test_no_prefix_is_taken_out_that_would_not_fit():
    assert extra_prefix({"a.weight"}, {"module.a.weight", "head.bias"}) == "module."
    assert extra_prefix({"a.weight"}, {"module.b.weight"}) is None
    assert extra_prefix({"a.weight"}, {"x.a.weight", "x.b.weight"}) is None
    assert extra_prefix(set(), {"module.a.weight"}) is None


def rename_adapter(folder: Path, rename: Callable[[str], str]) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({rename(name): value for name, value in load_file(file).items()}, file)


def save_adapted(folder: Path) -> tuple[str, float]:
    """Folders "base" and "adapter" of a Qwen2-VL; returns what the adapted model says."""
    tiny = tiny_multimodal.FAMILIES["qwen2_vl"]()
    tiny.model.save_pretrained(folder / "base")
    tiny.processor.tokenizer.chat_template = tiny.processor.chat_template
    tiny.processor.tokenizer.save_pretrained(folder / "base")
    tiny.processor.image_processor.save_pretrained(folder / "base")
    model = adapted(type(tiny.model).from_pretrained(folder / "base"))
    model.save_pretrained(folder / "adapter")
    return words(load_captioner(model, tiny.processor))


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("model.model.visual.", "model.visual.").replace(".language_model.", "."),
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    ],
    ids=["before transformers 4.52", "compiled"],
)
def test_an_adapter_whose_names_are_older_or_wrapped_is_loaded(rename, tmp_path):
    expected = save_adapted(tmp_path)
    rename_adapter(tmp_path / "adapter", rename)
    assert words(load_captioner(str(tmp_path / "adapter"))) == expected


def test_an_adapter_that_does_not_fit_is_never_used_in_part(tmp_path):
    save_adapted(tmp_path)
    rename_adapter(tmp_path / "adapter", lambda name: name.replace("layers.0.self_attn", "layers.0.attention"))
    with pytest.raises(ValueError, match=r"does not fit its base model.* lacks \(\d+: .* and has others \(\d+: "):
        load_captioner(str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(OSError, match="without the adapter's weights"):
        load_captioner(str(tmp_path / "adapter"))


def test_an_adapter_beside_its_base_models_config_or_with_a_relative_path(tmp_path):
    expected = save_adapted(tmp_path)
    shutil.copy(tmp_path / "base" / "config.json", tmp_path / "adapter")
    settings = tmp_path / "adapter" / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": "../base"}))
    assert words(load_captioner(str(tmp_path / "adapter"))) == expected
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": "/nowhere"}))
    with pytest.raises(OSError, match="holds an adapter of '/nowhere', which cannot be loaded"):
        load_captioner(str(tmp_path / "adapter"))


def test_an_adapter_brings_its_own_tokenizer(tmp_path):
    save_adapted(tmp_path)
    base = load_captioner(str(tmp_path / "base"))
    tokenizer, model = base.tokenizer, base.model
    tokenizer.add_tokens(["<new>"])
    tokenizer.chat_template += "!"
    model.resize_token_embeddings(len(tokenizer))
    model = adapted(model, modules_to_save=["embed_tokens", "lm_head"])
    model.save_pretrained(tmp_path / "more")
    tokenizer.save_pretrained(tmp_path / "more")
    captioner = load_captioner(str(tmp_path / "more"))
    assert len(captioner.tokenizer) == len(tokenizer)
    assert captioner.chat_template.endswith("!")
    assert words(captioner) == words(load_captioner(model, (base.image_processor, tokenizer)))
