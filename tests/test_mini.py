"""The bundled captioner's encoder and its place in transformers, at a tiny size."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import tiny_models
import torch
import transformers

from salcap.captioners import load_captioner
from salcap.captioners.mini.configuration import SalcapEncoderConfig
from salcap.captioners.mini.modeling import SalcapEncoder
from salcap.config import POLICIES, Weighting
from salcap.frames import Frames
from salcap.weighting import recorded_selections

SIDE, GRID = 64, 4
RANDOM_MAP = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(5)) * 2


@pytest.fixture(scope="module")
def encoder() -> SalcapEncoder:
    torch.manual_seed(0)
    config = SalcapEncoderConfig(
        trunk="lite0", image_size=SIDE, hidden_size=32, num_attention_heads=2, intermediate_size=48
    )
    model = SalcapEncoder(config).eval()
    with torch.no_grad():
        model.saliency_embedding.normal_()
        model.position_embedding.normal_()
    return model


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    """Trunk features of 2 clips of 3 frames."""
    return torch.randn(2, 3, GRID**2, 112, generator=torch.Generator().manual_seed(1))


def encode(encoder, features, log_density=None, mode="none", **options) -> torch.Tensor:
    with torch.no_grad():
        return encoder(trunk_features=features, log_density=log_density, mode=mode, **options).last_hidden_state


@pytest.mark.parametrize("scope", ["frame", "clip"])
@pytest.mark.parametrize("policy", POLICIES)
def test_keeping_all_patches_is_the_unmodified_encoder_bit_for_bit(encoder, features, policy, scope):
    plain = encode(encoder, features)
    assert torch.equal(encode(encoder, features, RANDOM_MAP, "prune", policy=policy, scope=scope), plain)


def test_neutral_scaling_is_the_unmodified_encoder_bit_for_bit(encoder, features):
    plain = encode(encoder, features)
    assert torch.equal(encode(encoder, features, torch.full((2, 3, 7, 9), -4.1), "scale", strength=1.0), plain)
    assert torch.equal(encode(encoder, features, RANDOM_MAP, "scale", strength=0.0), plain)
    assert not torch.allclose(encode(encoder, features, RANDOM_MAP, "scale", strength=1.0), plain, atol=1e-2)


@pytest.mark.parametrize("scope", ["frame", "clip"])
def test_only_the_patches_under_a_bright_square_are_read(encoder, features, scope):
    """The map's bright lower right quarter: local features elsewhere do not matter, there they do.

    Without the semantic features, for which the trunk's tail looks at the whole frame.
    """
    encoder = copy.deepcopy(encoder)
    torch.nn.init.zeros_(encoder.deep_projection.weight)
    log_density = torch.full((2, 3, 8, 8), -30.0)
    log_density[..., 4:, 4:] = 0.0
    inside = torch.zeros(GRID, GRID, dtype=torch.bool)
    inside[2:, 2:] = True
    options = {"mode": "prune", "policy": "top", "keep_ratio": 0.25, "scope": scope}
    tokens = encode(encoder, features, log_density, **options)
    assert tokens.shape == (2, 3 * 4, 32)
    for where, matters in ((~inside, False), (inside, True)):
        local = features.clone()
        local[:, :, where.flatten()] += 1.0 + torch.rand(local.shape[-1])
        changed = encode(encoder, local, log_density, **options)
        assert torch.equal(changed, tokens) is not matters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_kept_does_not_depend_on_the_dtype(encoder, features, dtype):
    """Nor does it differ from what the decoder's bias is laid on, which is planned in float32."""
    maps = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(3)) / 50
    kept = []
    for kind in (torch.float32, dtype):
        with recorded_selections() as record:
            encode(copy.deepcopy(encoder).to(kind), features.to(kind), maps, "prune", policy="top", keep_ratio=0.25)
        kept.append(record[0][1].keep_indices)
    assert torch.equal(*kept)


@pytest.mark.parametrize("scope", ["frame", "clip"])
def test_frames_do_not_see_each_other(encoder, features, scope):
    """The decoder joins frames; the encoder was trained on single ones."""
    options = {"mode": "prune", "policy": "stratified", "keep_ratio": 0.5, "scope": scope}
    log_density = torch.zeros(2, 3, 4, 4) + torch.linspace(0, 1, 4)  # alike in every frame: equal budgets
    tokens = encode(encoder, features, log_density, **options)
    local = features.clone()
    local[:, 1] *= -1.0
    changed = encode(encoder, local, log_density, **options)
    differs = (tokens != changed).any(-1).view(2, 3, 8).any(-1)
    assert differs.tolist() == [[False, True, False]] * 2


def test_time_matters_but_not_where_the_clock_starts(encoder, features):
    seconds = torch.tensor([[0.0, 1.0, 2.5], [0.0, 3.0, 4.0]])
    tokens = encode(encoder, features, pts_seconds=seconds)
    torch.testing.assert_close(encode(encoder, features, pts_seconds=seconds + 70.0), tokens, atol=1e-4, rtol=0)
    plain = encode(encoder, features)
    per_frame = (tokens - plain).abs().amax(-1).view(2, 3, -1).amax(-1)
    assert (per_frame[:, 0] == 0).all()  # a still, or a clip's first frame, is as without times
    assert (per_frame[:, 1:] > 1e-3).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mode": "prune"}, "needs log_density"),
        ({"log_density": RANDOM_MAP}, "mode is 'none'"),
        ({"mode": "bias", "log_density": RANDOM_MAP}, "acts in the decoder's attention"),
        ({"mode": "scael", "log_density": RANDOM_MAP}, "did you mean 'scale'"),
    ],
)
def test_encoder_fails(encoder, features, options, message):
    with pytest.raises(ValueError, match=message):
        encode(encoder, features, **options)


def test_wrong_pixels_fail(encoder):
    with pytest.raises(ValueError, match=r"\(B, F, 3, 64, 64\), got \(1, 1, 3, 32, 32\)"):
        encoder(torch.zeros(1, 3, 32, 32))


def test_generate_takes_pixels_maps_and_all_keywords():
    model = tiny_models.mini().model
    pixels = torch.rand(2, 3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    saliency = {"log_density": RANDOM_MAP, "mode": "scale+prune", "keep_ratio": 0.5}
    greedy = model.generate(pixels, **saliency, num_beams=1, max_new_tokens=6, min_new_tokens=6)
    assert greedy.shape == (2, 7)
    several = model.generate(pixels, **saliency, num_beams=3, num_return_sequences=2, max_new_tokens=4)
    assert len(several) == 4
    torch.manual_seed(0)
    sampled = model.generate(pixels, do_sample=True, top_p=0.9, num_beams=1, max_new_tokens=6)
    assert len(sampled) == 2


def test_loaded_through_auto_classes_it_says_what_it_said(tmp_path):
    """In a process that only imports salcap: same logits from pixels and times, so nothing was left uninitialised."""
    tiny = tiny_models.mini()
    tiny.model.save_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(3)
    pixels, seconds = torch.rand(1, 2, 3, SIDE, SIDE, generator=generator), torch.tensor([[0.0, 1.5]])
    torch.save({"pixel_values": pixels, "pts_seconds": seconds}, tmp_path / "inputs.pt")
    with torch.no_grad():
        expected = tiny.model(pixel_values=pixels, pts_seconds=seconds, decoder_input_ids=torch.tensor([[1, 5]])).logits
    code = (
        "import sys, salcap, torch; assert 'transformers' not in sys.modules\n"
        "from transformers import AutoConfig, AutoModelForImageTextToText\n"
        f"folder = {str(tmp_path)!r}\n"
        "assert AutoConfig.from_pretrained(folder).encoder.model_type == 'salcap-encoder'\n"
        "model = AutoModelForImageTextToText.from_pretrained(folder).eval()\n"
        "inputs = torch.load(folder + '/inputs.pt')\n"
        "with torch.no_grad():\n"
        "    logits = model(**inputs, decoder_input_ids=torch.tensor([[1, 5]])).logits\n"
        "torch.save(logits, folder + '/logits.pt')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "first", ["transformers", *(f"salcap.captioners.mini.{m}" for m in ("configuration", "modeling"))]
)
def test_registration_works_in_any_order_of_imports(first):
    code = (
        f"import {first}, salcap\n"
        "from transformers import AutoConfig, AutoModel\n"
        "config = AutoConfig.for_model('salcap-encoder', trunk='lite0', image_size=64, hidden_size=8)\n"
        "print(type(AutoModel.from_config(config)).__name__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "SalcapEncoder", run.stderr


@pytest.mark.parametrize("weighting", [Weighting(), Weighting("prune", "foveate", 0.5), Weighting("bias")])
def test_maps_of_different_sizes_share_a_batch(weighting):
    tiny = tiny_models.mini()
    captioner = load_captioner(tiny.model, tiny.processor)
    clips = [Frames(torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8), torch.arange(2)) for _ in range(2)]
    maps = None if weighting.mode == "none" else [RANDOM_MAP[0, :2], torch.randn(2, 5, 6)]
    together = captioner.generate(clips, maps, weighting, max_new_tokens=5)
    for i in range(2):
        (alone,) = captioner.generate([clips[i]], maps and [maps[i]], weighting, max_new_tokens=5)
        assert alone.score == pytest.approx(together[i].score, abs=1e-4)
        assert alone.visual_tokens == together[i].visual_tokens == (16 if weighting.mode == "prune" else 32)


def test_defaults_come_from_the_config():
    tiny = tiny_models.mini()
    tiny.model.config.encoder.saliency = {"backbone": "spectral_residual", "mode": "prune", "keep_ratio": 0.5}
    captioner = load_captioner(tiny.model, tiny.processor)
    assert captioner.default_saliency == "spectral_residual"
    assert captioner.default_weighting == Weighting("prune", keep_ratio=0.5)
    assert captioner.read_options == {"size": (SIDE, SIDE)}
    assert isinstance(tiny.model, transformers.VisionEncoderDecoderModel)
