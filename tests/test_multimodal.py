"""The seam between saliency and the multimodal families, on tiny models of the true architectures."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import tiny_multimodal
import torch
import transformers
from test_captioners import assert_same_bits, make_clip, make_map, outputs, state_of_modules  # noqa: F401
from tiny_chat import PROMPT, TinyMultimodal
from torch import Tensor

from salcap.captioners import CAPTIONER_FAMILIES, load_captioner
from salcap.config import POLICIES, Weighting
from salcap.frames import Frames
from salcap.weighting import relative_saliency

FAMILIES = sorted(tiny_multimodal.FAMILIES)
QFORMERS = ("blip_2", "instructblipvideo")
QWENS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
CHATS = [family for family in FAMILIES if family not in QFORMERS]
WEIGHTED = [Weighting("scale", strength=1.0), Weighting("bias"), Weighting("prune", "top", keep_ratio=0.5)]


def constant_map(seed: int, num_frames: int) -> Tensor:
    return torch.full((num_frames, 9, 11), -3.7)


NEUTRAL = [
    (Weighting(), None),
    (Weighting("scale", strength=0.0), make_map),
    (Weighting("scale", strength=1.0), constant_map),
    (Weighting("bias", strength=0.0), make_map),
    (Weighting("bias", strength=1.0), constant_map),
    (Weighting("prune", "top", 1.0), make_map),
    (Weighting("prune", "foveate", 1.0, "clip"), make_map),
    (Weighting("scale+bias+prune", strength=0.0), make_map),
]


def load(family: str) -> tuple[TinyMultimodal, Any]:
    tiny = tiny_multimodal.FAMILIES[family]()
    return tiny, load_captioner(tiny.model, tiny.processor)


def vision_layers(model: Any) -> torch.nn.ModuleList:
    """The layers of the vision encoder."""
    inner = getattr(model, "model", model)
    tower = next(getattr(inner, n) for n in ("vision_model", "vision_tower", "visual") if hasattr(inner, n))
    return next(module for module in tower.modules() if isinstance(module, torch.nn.ModuleList))


def test_every_registered_family_is_tested():
    types = {tiny_multimodal.FAMILIES[family]().model.config.model_type for family in FAMILIES}
    old = {"blip", "git", "vision-encoder-decoder", "vision-encoder-decoder/salcap-encoder"}
    assert types == set(CAPTIONER_FAMILIES) - old


@pytest.mark.parametrize("num_clips, num_frames", [(1, 1), (3, 2)])
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_neutral_settings_equal_the_unmodified_model_bit_for_bit(family, num_beams, num_clips, num_frames, outputs):  # noqa: F811
    tiny, captioner = load(family)
    clips = [make_clip(seed, num_frames) for seed in range(num_clips)]
    generation = {"num_beams": num_beams, "max_new_tokens": 4}
    inputs = tiny.inputs(clips)
    plain = tiny.generate(clips, **generation)
    length = 0 if tiny.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    words = captioner.tokenizer.batch_decode(plain.sequences[:, length:], skip_special_tokens=True)
    for weighting, maker in NEUTRAL:
        maps = None if maker is None else [maker(seed, num_frames) for seed in range(num_clips)]
        outputs.clear()
        texts = captioner.generate(clips, maps, weighting, prompt=PROMPT, **generation)
        assert_same_bits(outputs[-1][0], plain)
        assert [text.text for text in texts] == [text.strip() for text in words]
        assert all(PROMPT not in text.text for text in texts)


@pytest.mark.parametrize("family", FAMILIES)
def test_neutral_settings_equal_the_unmodified_model_with_eager_attention_in_bfloat16(family, outputs):  # noqa: F811
    tiny, captioner = load(family)
    tiny.model.set_attn_implementation("eager")
    tiny.model.to(torch.bfloat16)
    if family in QFORMERS:  # as from_pretrained leaves them
        tiny.model.query_tokens.data = tiny.model.query_tokens.data.float()
    if family == "blip_2":
        tiny.model.qformer.float()
    clips = [make_clip(seed) for seed in range(2)]
    inputs = tiny.inputs(clips)
    pixels = {name: value.to(torch.bfloat16) if "pixel_values" in name else value for name, value in inputs.items()}
    kept = {"return_dict_in_generate": True, "output_scores": True}
    plain = tiny.model.generate(**pixels, max_new_tokens=3, **kept)
    for weighting, maker in (NEUTRAL[0], NEUTRAL[-1]):
        maps = None if maker is None else [maker(seed, 2) for seed in range(2)]
        captioner.generate(clips, maps, weighting, prompt=PROMPT, max_new_tokens=3)
        assert_same_bits(outputs[-1][0], plain)
    for weighting in [*WEIGHTED, Weighting("scale+bias+prune", "foveate", 0.4, "clip")]:
        (text, _) = captioner.generate(clips, [make_map(seed) for seed in range(2)], weighting, max_new_tokens=3)
        assert not torch.equal(outputs[-1][0].scores[0], plain.scores[0])
        assert text.score is not None


def test_blip_2_with_an_encoder_decoder_equals_the_unmodified_model(outputs):  # noqa: F811
    tiny = tiny_multimodal.blip_2("t5")
    captioner = load_captioner(tiny.model, tiny.processor)
    clips = [make_clip(seed, 1) for seed in range(2)]
    for num_beams in (1, 3):
        plain = tiny.generate(clips, num_beams=num_beams, max_new_tokens=4)
        texts = captioner.generate(clips, None, Weighting(), prompt=PROMPT, num_beams=num_beams, max_new_tokens=4)
        assert_same_bits(outputs[-1][0], plain)
        words = captioner.tokenizer.batch_decode(plain.sequences, skip_special_tokens=True)
        assert [text.text for text in texts] == [text.strip() for text in words]


def test_blip_2_without_prompt_captions_as_its_own_generate_does(outputs):  # noqa: F811
    tiny, captioner = load("blip_2")
    clip = make_clip(0, 1)
    plain = tiny.model.generate(
        **tiny.pixels([clip]), max_new_tokens=4, return_dict_in_generate=True, output_scores=True
    )
    captioner.generate([clip], None, Weighting(), max_new_tokens=4)
    assert_same_bits(outputs[-1][0], plain)


@pytest.mark.parametrize("weighting", WEIGHTED, ids=lambda w: w.mode)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_map_changes_the_logits_and_another_map_changes_them_again(family, weighting, outputs):  # noqa: F811
    _, captioner = load(family)
    clip = make_clip(0)
    captioner.generate([clip], None, Weighting(), max_new_tokens=2)
    for seed in range(2):
        captioner.generate([clip], [make_map(seed)], weighting, max_new_tokens=2)
    for a, b in itertools.combinations([output.scores[0] for output, _ in outputs], 2):
        assert (a - b).abs().max() > 0.01


@pytest.mark.parametrize("policy", ["top", "foveate"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pruning_saves_the_encoder_and_the_language_model_their_work(family, policy, outputs):  # noqa: F811
    tiny, captioner = load(family)
    clip, log_density = make_clip(0, 2), make_map(0, 2)
    rows, columns = tiny.grid
    spans = 1 if family in QWENS else 2  # of frames that share tokens
    num_tokens = {True: spans * rows * columns // 4, False: spans * rows * columns}
    entered: list[int] = []
    layer = vision_layers(tiny.model)[0]
    layer.register_forward_pre_hook(lambda _m, args: entered.append(args[0].shape[:-1].numel()))
    lengths = []
    for prunes in (True, False):
        entered.clear()
        weighting = Weighting("prune", policy, 0.25) if prunes else Weighting()
        (text,) = captioner.generate([clip], [log_density] if prunes else None, weighting, max_new_tokens=2)
        entered_all, keywords = sum(entered), outputs[-1][1]
        ids = keywords["input_ids"]
        lengths.append(ids.shape[1])
        placeholder = captioner.placeholder_id
        assert text.visual_tokens == int((ids == placeholder).sum())
        if family in QFORMERS:  # tokens are the queries' own, and patches not grouped
            assert text.visual_tokens == 2 * 5
            assert entered_all == num_tokens[prunes] + 2
            continue
        assert text.visual_tokens == num_tokens[prunes] + (family == "llava_onevision")
        if not captioner.early_pruning:
            assert entered_all == 2 * 65
        elif family == "llava_onevision":
            assert entered_all == 2 * 49 if not prunes else entered_all <= 2 * 4 * 4
        elif family == "llava_next_video" and prunes and policy == "foveate":
            assert entered_all == 2 * (1 + 2 * 4 + 2)  # a coarse token is one patch within the encoder
        else:
            prefix = {"internvl": 2, "llava_next_video": 2}.get(family, 0)
            assert entered_all == 4 * num_tokens[prunes] + prefix
    if family not in QFORMERS:
        assert lengths[1] - lengths[0] == num_tokens[False] - num_tokens[True]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clip_has_as_many_visual_tokens_as_it_may(family):
    _, captioner = load(family)
    clip, log_density = make_clip(0, 2), make_map(0, 2)
    (whole,) = captioner.generate([clip], None, Weighting(), max_new_tokens=2)
    limit = whole.visual_tokens - 3
    weighting = Weighting("prune", "top", max_visual_tokens=limit)
    if family in QFORMERS:
        with pytest.raises(ValueError, match=f"max_visual_tokens {limit} cannot be honoured"):
            captioner.generate([clip], [log_density], weighting)
        return
    (pruned,) = captioner.generate([clip], [log_density], weighting, max_new_tokens=2)
    assert pruned.visual_tokens == limit


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_batch_equals_single_runs(family, num_beams):
    """Clips of unequal frame size, number of frames and times, in every mode and policy and both scopes."""
    _, captioner = load(family)
    clips = [make_clip(0, 2), make_clip(1, 1, height=28, width=52), make_clip(2, 3, height=52)]
    clips[2] = Frames(clips[2].pixels, [0.0, 10.0, 75.5])
    maps = [make_map(seed, len(clip)) for seed, clip in enumerate(clips)]
    scopes = itertools.cycle(("frame", "clip"))
    prunes = [Weighting("prune", policy, 0.4, scope) for policy, scope in zip(POLICIES, scopes, strict=False)]
    for weighting in [Weighting(), *WEIGHTED[:2], *prunes, Weighting("scale+bias+prune", "foveate", 0.4, "clip")]:
        given = None if weighting.mode == "none" else maps
        generation = {"num_beams": num_beams, "max_new_tokens": 4}
        together = captioner.generate(clips, given, weighting, **generation)
        for i, clip in enumerate(clips):
            (alone,) = captioner.generate([clip], given and [given[i]], weighting, **generation)
            assert together[i].text == alone.text, weighting
            assert together[i].score == pytest.approx(alone.score, abs=1e-4), weighting
            assert together[i].visual_tokens == alone.visual_tokens


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "smolvlm", "llava_onevision"])
def test_bias_is_the_same_with_a_static_cache(family):
    _, captioner = load(family)
    clips, maps = [make_clip(0), make_clip(1)], [make_map(0), make_map(1)]
    for weighting in (Weighting("bias", strength=0.5), Weighting("bias+prune", "foveate", 0.5)):
        growing, static = (
            captioner.generate(clips, maps, weighting, max_new_tokens=4, cache_implementation=kind)
            for kind in (None, "static")
        )
        assert [text.text for text in static] == [text.text for text in growing]
        assert [text.score for text in static] == pytest.approx([text.score for text in growing], abs=1e-4)


def test_bias_is_refused_where_layers_read_a_window():
    tiny = tiny_multimodal.llava_next_video()
    config = tiny.model.config
    config.text_config = transformers.MistralConfig(**{**config.text_config.to_dict(), "model_type": "mistral"})
    for window, allowed in ((16, False), (None, True)):
        config.text_config.sliding_window = window
        model = transformers.LlavaNextVideoForConditionalGeneration(config)
        assert ("bias" in load_captioner(model, tiny.processor).modes) == allowed


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_follows_the_callers_seed(family, outputs):  # noqa: F811
    tiny, captioner = load(family)
    clips = [make_clip(seed) for seed in range(2)]
    settings = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 6}
    for seed in (1, 2):
        torch.manual_seed(seed)
        captioner.generate(clips, None, Weighting(), prompt=PROMPT, **settings)
    first, other = (output.sequences for output, _ in outputs)
    torch.manual_seed(1)
    assert torch.equal(first, tiny.generate(clips, **settings).sequences)
    assert not torch.equal(first, other)


class StopHereError(Exception):
    pass


@pytest.mark.parametrize("stop", ["nowhere", "encoder", "generate"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_on_the_model(family, stop):
    tiny, captioner = load(family)

    def raise_error(*_: Any) -> None:
        raise StopHereError

    weighting = Weighting("scale+bias+prune", keep_ratio=0.5)
    captioner.generate([make_clip(0)], [make_map(0)], weighting, max_new_tokens=2)  # transformers' own lazy state
    before, config = state_of_modules(tiny.model), tiny.model.config.to_dict()
    settings: dict[str, Any] = {"max_new_tokens": 2}
    if stop == "generate":
        settings["logits_processor"] = [raise_error]
    handle = vision_layers(tiny.model)[1].register_forward_pre_hook(raise_error) if stop == "encoder" else None
    if stop == "nowhere":
        captioner.generate([make_clip(0)], [make_map(0)], weighting, **settings)
    else:
        with pytest.raises(StopHereError):
            captioner.generate([make_clip(0)], [make_map(0)], weighting, **settings)
    if handle is not None:
        handle.remove()
    assert state_of_modules(tiny.model) == before
    assert tiny.model.config.to_dict() == config
    plain = tiny.generate([make_clip(0)], max_new_tokens=2)
    captioner.generate([make_clip(0)], None, Weighting(), prompt=PROMPT, max_new_tokens=2)
    assert torch.equal(plain.scores[0], tiny.generate([make_clip(0)], max_new_tokens=2).scores[0])


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", CHATS)
def test_bias_multiplies_attention_to_a_token_by_its_saliency(family, num_beams, outputs):  # noqa: F811
    """In a ragged batch, so that one prompt is padded; against the unbiased attention of the same layer."""
    tiny, captioner = load(family)
    tiny.model.set_attn_implementation("eager")
    clips, maps = [make_clip(0, 4), make_clip(1, 2)], [make_map(0, 4), make_map(1, 2)]
    attention: list[Tensor] = []
    layer = tiny.model.model.get_decoder().layers[0].self_attn
    layer.register_forward_hook(lambda _module, _args, output: attention.append(output[1]))
    generation = {"num_beams": num_beams, "max_new_tokens": 1}
    captioner.generate(clips, maps, Weighting("bias", strength=0.7), **generation)
    captioner.generate(clips, None, Weighting(), **generation)
    biased, plain = attention
    ids = outputs[0][1]["input_ids"]
    weight = torch.ones(ids.shape)
    for row, log_density in enumerate(maps):
        saliency = relative_saliency(log_density, tiny.grid, captioner.preprocess.seen_box(36, 44))
        if family in QWENS:
            saliency = saliency.unflatten(0, (-1, 2)).mean(1)
        places = (ids[row] == captioner.placeholder_id).nonzero()[: saliency.numel(), 0]
        weight[row, places] = saliency.flatten() ** 0.7
    expected = plain * weight.repeat_interleave(num_beams, 0)[:, None, None]
    seen = outputs[0][1]["attention_mask"].bool().repeat_interleave(num_beams, 0)
    expected = (expected / expected.sum(-1, keepdim=True)).transpose(1, 2)[seen]
    torch.testing.assert_close(biased.transpose(1, 2)[seen], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", QFORMERS)
def test_a_q_former_bias_without_bound_leaves_what_slicing_would(family, attention, outputs):  # noqa: F811
    """Some patches far more salient than all others, at great strength: the Q-Former must see these only."""
    tiny, captioner = load(family)
    tiny.model.set_attn_implementation(attention)
    clip, log_density = make_clip(0, 1, height=32, width=32), torch.full((1, 4, 4), -60.0)
    shown = torch.tensor([1, 6, 11, 12])
    log_density.flatten()[shown] = 0.0
    captioner.generate([clip], [log_density], Weighting("bias", strength=60.0), max_new_tokens=3)
    biased, keywords = outputs[-1]
    with torch.no_grad():
        states = tiny.model.vision_model(pixel_values=captioner.preprocess(clip)).last_hidden_state
        features = captioner.query(states[:, 1 + shown], captioner.default_prompt)  # behind CLS
    embeds = keywords["inputs_embeds"].clone()
    embeds[keywords["input_ids"] == captioner.placeholder_id] = features[0]
    sliced = tiny.model.language_model.generate(**{**keywords, "inputs_embeds": embeds})
    for a, b in zip(biased.scores, sliced.scores, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
