"""The seam between saliency and the Hugging Face families, on tiny models of the true architectures."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from salcap.captioners import load_captioner
from salcap.config import POLICIES, Weighting
from salcap.frames import Frames

FAMILIES = sorted(tiny_models.FAMILIES)
GRID = (tiny_models.SIDE // tiny_models.PATCH,) * 2
SCOPES = ("frame", "clip")
WEIGHTED = [Weighting("scale", strength=1.0), Weighting("bias"), Weighting("prune", keep_ratio=0.5)]


def make_clip(seed: int, num_frames: int = 2, height: int = 36, width: int = 44) -> Frames:
    """Random colours in a few large fields: models tell them apart better than noise."""
    generator = torch.Generator().manual_seed(seed)
    fields = torch.randint(0, 256, (num_frames, 3, 5, 5), generator=generator).float()
    pixels = torch.nn.functional.interpolate(fields, (height, width)).to(torch.uint8)
    return Frames(pixels, torch.arange(num_frames))


def make_map(seed: int, num_frames: int = 2) -> Tensor:
    return torch.randn(num_frames, 9, 11, generator=torch.Generator().manual_seed(100 + seed)) * 2


@pytest.fixture
def outputs(monkeypatch) -> list[Any]:
    """Everything that transformers' own generate returns, with the keywords it was called with."""
    seen: list[Any] = []
    original = GenerationMixin.generate

    def generate(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        seen.append((output, kwargs))
        return output

    monkeypatch.setattr(GenerationMixin, "generate", generate)
    return seen


def generate_plainly(family: str, tiny: tiny_models.Tiny, clips: list[Frames], **generation: Any) -> Any:
    """What transformers alone makes of the clips; where it takes one image only, frames' tokens are concatenated."""
    model = tiny.model
    generation |= {"return_dict_in_generate": True, "output_scores": True}
    image_processor = tiny.processor[0] if isinstance(tiny.processor, tuple) else tiny.processor.image_processor
    pixels = torch.stack([image_processor(list(c.pixels), return_tensors="pt").pixel_values for c in clips])
    if family == "git":
        return model.generate(pixel_values=pixels, **generation)
    if pixels.shape[1] == 1:
        return model.generate(pixel_values=pixels[:, 0], **generation)
    encoder = model.vision_model if family == "blip" else model.encoder
    with torch.no_grad():
        tokens = encoder(pixel_values=pixels.flatten(0, 1)).last_hidden_state
    tokens = tokens.reshape(len(clips), -1, tokens.shape[-1])
    if family == "blip":
        start = torch.full((len(clips), 1), 1)
        return model.text_decoder.generate(input_ids=start, encoder_hidden_states=tokens, eos_token_id=2, **generation)
    return model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=tokens), **generation)


def assert_same_bits(ours: Any, plain: Any) -> None:
    assert torch.equal(ours.sequences, plain.sequences)
    assert len(ours.scores) == len(plain.scores) > 0
    assert all(torch.equal(a, b) for a, b in zip(ours.scores, plain.scores, strict=True))
    if getattr(plain, "sequences_scores", None) is not None:
        assert torch.equal(ours.sequences_scores, plain.sequences_scores)


NEUTRAL = [
    (Weighting(), None),
    (Weighting("scale", strength=0.0), make_map),
    (Weighting("scale", strength=1.0), lambda seed, num_frames: torch.full((num_frames, 9, 11), -3.7)),
    (Weighting("bias", strength=0.0), make_map),
    (Weighting("bias", strength=1.0), lambda seed, num_frames: torch.full((num_frames, 9, 11), -3.7)),
    *((Weighting("prune", policy, 1.0, scope), make_map) for policy in POLICIES for scope in SCOPES),
    (Weighting("scale+bias+prune", strength=0.0), make_map),
]


@pytest.mark.parametrize("num_clips, num_frames", [(1, 1), (3, 2)])
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_neutral_settings_equal_the_unmodified_model_bit_for_bit(family, num_beams, num_clips, num_frames, outputs):
    tiny = tiny_models.FAMILIES[family]()
    captioner = load_captioner(tiny.model, tiny.processor)
    clips = [make_clip(seed, num_frames) for seed in range(num_clips)]
    generation = {"num_beams": num_beams, "max_new_tokens": 5}
    plain = generate_plainly(family, tiny, clips, **generation)
    for weighting, maker in NEUTRAL:
        if family == "git" and num_clips > 1 and "prune" in weighting.modes and weighting.scope == "clip":
            continue  # GIT takes these one by one: see test_batch_equals_single
        maps = None if maker is None else [maker(seed, num_frames) for seed in range(num_clips)]
        outputs.clear()
        texts = captioner.generate(clips, maps, weighting, **generation)
        assert_same_bits(outputs[0][0], plain)
        tokenizer = captioner.tokenizer
        assert [t.text for t in texts] == tokenizer.batch_decode(plain.sequences, skip_special_tokens=True)


@pytest.mark.parametrize("weighting", WEIGHTED, ids=lambda w: w.mode)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_map_changes_the_logits_and_another_map_changes_them_again(family, weighting, outputs):
    tiny = tiny_models.FAMILIES[family]()
    captioner = load_captioner(tiny.model, tiny.processor)
    clip = make_clip(0)
    captioner.generate([clip], None, Weighting(), max_new_tokens=2)
    for seed in range(2):
        captioner.generate([clip], [make_map(seed)], weighting, max_new_tokens=2)
    first_step = [output.scores[0] for output, _ in outputs]
    for a, b in itertools.combinations(first_step, 2):
        assert (a - b).abs().max() > 0.01


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_batch_equals_single(family, num_beams):
    """Clips of unequal frame size and number of frames, in every mode and policy and both scopes."""
    tiny = tiny_models.FAMILIES[family]()
    captioner = load_captioner(tiny.model, tiny.processor)
    frames = [2, 1, 2]
    clips = [make_clip(seed, n, height=36 + 8 * seed) for seed, n in enumerate(frames)]
    maps = [make_map(seed, n) for seed, n in enumerate(frames)]
    prunes = [Weighting("prune", policy, 0.4, scope) for policy, scope in zip(POLICIES, SCOPES * 3, strict=False)]
    for weighting in [Weighting(), *WEIGHTED, *prunes, Weighting("scale+bias+prune", "foveate", 0.4, "clip")]:
        given = None if weighting.mode == "none" else maps
        generation = {"num_beams": num_beams, "max_new_tokens": 4}
        together = captioner.generate(clips, given, weighting, **generation)
        for i, clip in enumerate(clips):
            (alone,) = captioner.generate([clip], given and [given[i]], weighting, **generation)
            assert together[i].text == alone.text, weighting
            assert together[i].score == pytest.approx(alone.score, abs=1e-4), weighting
            assert together[i].visual_tokens == alone.visual_tokens


def state_of_modules(model: torch.nn.Module) -> dict[str, Any]:
    hooks = {
        name: {k: len(v) for k, v in vars(module).items() if "hooks" in k and hasattr(v, "__len__")}
        for name, module in model.named_modules()
    }
    return {"hooks": hooks, "attributes": {name: set(vars(module)) for name, module in model.named_modules()}}


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_never_leak(family, raises):
    tiny = tiny_models.FAMILIES[family]()
    captioner = load_captioner(tiny.model, tiny.processor)
    clip, calls = make_clip(0), []

    def processor(input_ids: Tensor, scores: Tensor) -> Tensor:
        calls.append(sum(sum(h.values()) for h in state_of_modules(tiny.model)["hooks"].values()))
        if raises:
            raise RuntimeError("stop here")
        return scores

    before = state_of_modules(tiny.model)
    settings = {"max_new_tokens": 2, "logits_processor": [processor]}
    weighting = Weighting("scale+bias+prune", keep_ratio=0.5)
    if raises:
        with pytest.raises(RuntimeError, match="stop here"):
            captioner.generate([clip], [make_map(0)], weighting, **settings)
    else:
        captioner.generate([clip], [make_map(0)], weighting, **settings)
    assert calls[0] > sum(sum(h.values()) for h in before["hooks"].values())  # a hook was there while generating
    assert state_of_modules(tiny.model) == before


def capture(module: torch.nn.Module) -> list[Tensor]:
    """Outputs of a module, copied as it makes them."""
    made: list[Tensor] = []
    module.register_forward_hook(lambda _module, _args, output: made.append(output.clone()))
    return made


def vision_parts(family: str, model: Any) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """The convolution that cuts patches, the patch embeddings, and the first layer after them."""
    if family == "git":
        vision = model.git.image_encoder.vision_model
        return vision.embeddings.patch_embedding, vision.embeddings, vision.encoder.layers[0]
    if family == "blip":
        vision = model.vision_model
        return vision.embeddings.patch_embedding, vision.embeddings, vision.encoder.layers[0]
    return model.encoder.embeddings.patch_embeddings.projection, model.encoder.embeddings, model.encoder.layers[0]


@pytest.mark.parametrize(
    "rows, columns", [((0, 0.5), (0.5, 0.75)), ((0.5, 0.75), (0.25, 0.75)), ((0.3, 0.6), (0.4, 0.7))]
)
@pytest.mark.parametrize("height, width", [(40, 80), (80, 40), (48, 48), (33, 57)])
@pytest.mark.parametrize("family", FAMILIES)
def test_kept_patches_are_those_that_show_what_is_salient(family, height, width, rows, columns):
    """A bright square in a dark frame, salient where it is bright: the patches that stay must be the bright ones.

    What is bright is read from the pixels that the model gets: resizing, the centre crop of wide and tall frames and
    the order of patches are all in it.
    """
    tiny = tiny_models.FAMILIES[family]()
    captioner = load_captioner(tiny.model, tiny.processor)
    convolution, embeddings, first_layer = vision_parts(family, tiny.model)
    seen_pixels: list[Tensor] = []
    entered: list[Tensor] = []
    convolution.register_forward_pre_hook(lambda _module, args: seen_pixels.append(args[0].clone()))
    unpruned = capture(embeddings)
    first_layer.register_forward_pre_hook(lambda _module, args: entered.append(args[0].clone()))
    top, bottom = (round(r * height) for r in rows)
    left, right = (round(c * width) for c in columns)
    pixels = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    pixels[..., top:bottom, left:right] = 255
    log_density = torch.full((1, height, width), -12.0)
    log_density[..., top:bottom, left:right] = 0.0
    weighting = Weighting("prune", "top", keep_ratio=0.25)
    captioner.generate([Frames(pixels, [0.0])], [log_density], weighting, max_new_tokens=1)

    brightness = torch.nn.functional.avg_pool2d(seen_pixels[0], tiny_models.PATCH).mean(1).flatten()
    full = unpruned[0][0]
    if family == "git":
        full = tiny.model.git.image_encoder.vision_model.pre_layrnorm(full)
    kept = [int((full - row).abs().sum(-1).argmin()) - 1 for row in entered[0][0]]
    assert kept[0] == -1  # CLS stays, in front
    assert kept[1:] == sorted(set(kept[1:]))
    assert len(kept) == 1 + 4
    others = sorted(set(range(len(brightness))) - set(kept[1:]))
    lit = brightness - brightness.min() > 0.05
    assert lit.any()
    assert not lit.all()
    assert brightness[kept[1:]].min() >= brightness[others].max() - 0.05
