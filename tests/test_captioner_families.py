"""What each family does in its own way: budgets over a clip, attention bias, encoders, scores, errors."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
import transformers
from test_captioners import FAMILIES, GRID, generate_plainly, make_clip, make_map, outputs, vision_parts  # noqa: F401
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from salcap.captioners import load_captioner
from salcap.captioners.preprocessing import FramePreprocessor
from salcap.captioners.visual_tokens import ClipTokens
from salcap.config import Weighting
from salcap.weighting import prune_patches, relative_saliency

PRUNE = Weighting("prune", "top", 0.25)
EOS = {"git": 43, "vision_encoder_decoder": 41}  # words that these random models do say, not always and not at once


def tokens_of_decoder(family: str, model: Any, captioner: Any, clips: Any, maps: Any, weighting: Weighting) -> Tensor:
    """(B, T, D) that the text decoder reads, recorded on its way."""
    seen: list[Tensor] = []
    if family == "git":
        handle = model.git.visual_projection.register_forward_hook(lambda _m, _a, output: seen.append(output))
    else:
        decoder = model.text_decoder if family == "blip" else model.decoder
        handle = decoder.register_forward_pre_hook(
            lambda _m, _a, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
        )
    captioner.generate(clips, maps, weighting, max_new_tokens=1)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("policy", ["top", "foveate"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_budget_over_the_clip_encodes_each_frame_with_its_own_share(family, policy):
    """Against pruning the patch embeddings by hand and running the encoder's parts frame by frame."""
    tiny = tiny_models.FAMILIES[family]()
    captioner = load_captioner(tiny.model, tiny.processor)
    clip = make_clip(0, num_frames=3)
    log_density = torch.stack([make_map(1, 1)[0] * sharpness for sharpness in (0.1, 1.0, 4.0)])
    weighting = Weighting("prune", policy, 0.5, scope="clip")
    ours = tokens_of_decoder(family, tiny.model, captioner, [clip], [log_density], weighting)[0]

    saliency = relative_saliency(log_density, GRID, captioner.preprocess.seen_box(*clip.pixels.shape[-2:]))[None]
    embeddings = vision_parts(family, tiny.model)[1]
    with torch.no_grad():
        features = embeddings(captioner.preprocess(clip))[None]
        kept, selection = prune_patches(features, saliency, GRID, 0.5, policy, "clip", num_prefix_tokens=1)
        frames = kept[0].split((selection.counts[0] + 1).tolist())
        assert len({len(frame) for frame in frames}) > 1  # frames do get unequal shares
        by_hand = []
        for index, frame in enumerate(frames):
            if family == "git":
                vision = tiny.model.git.image_encoder.vision_model
                hidden = vision.encoder(inputs_embeds=vision.pre_layrnorm(frame[None])).last_hidden_state
                hidden = vision.post_layernorm(hidden) + tiny.model.git.img_temporal_embedding[index]
                by_hand.append(tiny.model.git.visual_projection(hidden)[0])
            elif family == "blip":
                vision = tiny.model.vision_model
                hidden = vision.encoder(inputs_embeds=frame[None]).last_hidden_state
                by_hand.append(vision.post_layernorm(hidden)[0])
            else:
                hidden = frame[None]
                for layer in tiny.model.encoder.layers:
                    hidden = layer(hidden, None)
                hidden = tiny.model.encoder.layernorm(hidden)
                by_hand.append(tiny.model.enc_to_dec_proj(hidden)[0])
    assert len(ours) == 3 * (8 + 1)
    torch.testing.assert_close(ours, torch.cat(by_hand), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_pruning_saves_the_vision_encoder_its_work(family):
    tiny = tiny_models.FAMILIES[family]()
    captioner = load_captioner(tiny.model, tiny.processor)
    entered: list[int] = []
    vision_parts(family, tiny.model)[2].register_forward_pre_hook(lambda _m, args: entered.append(args[0].shape[1]))
    assert captioner.early_pruning
    (text,) = captioner.generate([make_clip(0)], [make_map(0)], PRUNE, max_new_tokens=2)
    assert set(entered) == {1 + 4}
    assert text.visual_tokens == 2 * (1 + 4)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_git_pruned_below_its_fixed_mask_decodes_with_cache_as_without(num_beams, outputs):  # noqa: F811
    """GIT widens the mask of cached steps by the unpruned number of tokens: it must not matter."""
    tiny = tiny_models.git()
    captioner = load_captioner(tiny.model, tiny.processor)
    clips, maps = [make_clip(s) for s in range(2)], [make_map(s) for s in range(2)]
    for use_cache in (True, False):
        weighting = Weighting("bias+prune", keep_ratio=0.3)
        captioner.generate(clips, maps, weighting, num_beams=num_beams, max_new_tokens=6, use_cache=use_cache)
    (cached, _), (uncached, _) = outputs
    assert torch.equal(cached.sequences, uncached.sequences)
    for a, b in zip(cached.scores, uncached.scores, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_git_bias_multiplies_attention_to_a_patch_by_its_saliency(num_beams):
    tiny = tiny_models.git()
    captioner = load_captioner(tiny.model, tiny.processor)
    clips, maps = [make_clip(seed) for seed in range(2)], [make_map(seed) for seed in range(2)]
    attention: list[Tensor] = []
    layer = tiny.model.git.encoder.layer[0].attention.self
    layer.register_forward_hook(lambda _module, _args, output: attention.append(output[1]))
    generation = {"num_beams": num_beams, "max_new_tokens": 1}
    captioner.generate(clips, maps, Weighting("bias", strength=0.7), **generation)
    captioner.generate(clips, None, Weighting(), **generation)
    biased, plain = attention
    box = captioner.preprocess.seen_box(*clips[0].pixels.shape[-2:])
    saliency = torch.nn.functional.pad(relative_saliency(torch.stack(maps), GRID, box), (1, 0), value=1.0)  # CLS: 1
    weight = torch.nn.functional.pad(saliency.flatten(1), (0, plain.shape[-1] - 2 * 17), value=1.0) ** 0.7  # text: 1
    expected = plain * weight.repeat_interleave(num_beams, 0)[:, None, None]
    torch.testing.assert_close(biased, expected / expected.sum(-1, keepdim=True), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", ["blip", "gpt2", "bert", "roberta", "trocr"])
def test_a_cross_attention_bias_without_bound_leaves_what_slicing_would(family, num_beams, outputs):  # noqa: F811
    """Saliency that is zero but for some patches, at great strength: the decoder must see these patches only."""
    blip = family == "blip"
    tiny = tiny_models.blip() if blip else tiny_models.vision_encoder_decoder("vit", family)
    captioner = load_captioner(tiny.model, tiny.processor)
    clips = [make_clip(seed, num_frames=1, height=32, width=32) for seed in range(2)]
    maps = torch.full((2, 1, *GRID), -60.0)
    shown = torch.tensor([[1, 6, 11, 12], [0, 2, 3, 9]])  # raster order
    maps.flatten(1).scatter_(1, shown, 0.0)
    generation: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": 5}
    captioner.generate(clips, list(maps), Weighting("bias", strength=60.0), **generation)
    with torch.no_grad():
        pixels = torch.cat([captioner.preprocess(clip) for clip in clips])
        encoder = tiny.model.vision_model if blip else tiny.model.encoder
        tokens = encoder(pixel_values=pixels).last_hidden_state
    tokens = tokens.gather(1, shown.add(1)[..., None].expand(-1, -1, tokens.shape[-1]))  # behind CLS
    generation |= {"return_dict_in_generate": True, "output_scores": True}
    if blip:
        start = torch.ones(2, 1, dtype=torch.long)
        tiny.model.text_decoder.generate(input_ids=start, encoder_hidden_states=tokens, **generation)
    else:
        tiny.model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=tokens), **generation)
    (biased, _), (sliced, _) = outputs
    assert torch.equal(biased.sequences, sliced.sequences)
    for a, b in zip(biased.scores, sliced.scores, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "encoder, early, visual_tokens",
    [("deit", True, 2 + 4), ("dinov2", True, 5), ("beit", False, 5), ("swin", False, 4)],
)
def test_encoders_prune_where_their_layers_allow(encoder, early, visual_tokens, outputs):  # noqa: F811
    tiny = tiny_models.vision_encoder_decoder(encoder)
    captioner = load_captioner(tiny.model, tiny.processor)
    assert captioner.early_pruning == early
    clip, log_density = make_clip(0, num_frames=1, height=32, width=32), torch.full((1, *GRID), -9.0)
    log_density.flatten()[torch.tensor([2, 3, 7, 13])] = 0.0
    plain = generate_plainly("vision_encoder_decoder", tiny, [clip], max_new_tokens=3)
    for weighting, given in [(Weighting(), None), (Weighting("prune", keep_ratio=1.0), [log_density])]:
        captioner.generate([clip], given, weighting, max_new_tokens=3)
        assert torch.equal(outputs[-1][0].scores[0], plain.scores[0])
    (text,) = captioner.generate([clip], [log_density], PRUNE, max_new_tokens=3)
    assert text.visual_tokens == visual_tokens
    assert not torch.equal(outputs[-1][0].scores[0], plain.scores[0])
    if not early:
        with torch.no_grad():
            full = tiny.model.encoder(pixel_values=captioner.preprocess(clip)).last_hidden_state[0]
        prefix = tiny.num_prefix_tokens
        kept = torch.tensor([*range(prefix), *(prefix + i for i in (2, 3, 7, 13))])
        assert torch.equal(outputs[-1][1]["encoder_outputs"].last_hidden_state[0], full[kept])


def test_an_encoder_without_known_grid_captions_but_refuses_maps():
    tiny = tiny_models.vision_encoder_decoder("vit_msn")
    captioner = load_captioner(tiny.model, tiny.processor)
    (text,) = captioner.generate([make_clip(0)], None, Weighting(), max_new_tokens=3)
    assert text.text
    assert text.visual_tokens == 2 * 17
    with pytest.raises(ValueError, match=r"cannot honour mode 'prune'; it allows \['none', 'zoom'\]"):
        captioner.generate([make_clip(0)], [make_map(0)], PRUNE)


def test_a_decoder_that_may_not_add_a_bias_does_not_offer_it():
    tiny = tiny_models.vision_encoder_decoder("vit", "electra")
    assert load_captioner(tiny.model, tiny.processor).modes == {"none", "scale", "prune", "zoom"}


def test_an_encoder_that_reads_all_frames_at_once_is_refused():
    tiny = tiny_models.vision_encoder_decoder("timesformer")
    with pytest.raises(ValueError, match="'timesformer' encoder, which reads all frames at once"):
        load_captioner(tiny.model, tiny.processor)


def test_tokens_that_do_not_lie_in_the_grid_are_refused():
    with pytest.raises(ValueError, match="expected 17 tokens a frame, the encoder made 10"):
        ClipTokens(Weighting(), 1, GRID, 1).prune(0, torch.zeros(10, 8))


@pytest.mark.parametrize(
    "generation", [{}, {"do_sample": True, "top_k": 0}, {"num_beams": 3}, {"num_beams": 3, "length_penalty": 2.0}]
)
@pytest.mark.parametrize("family", ["git", "vision_encoder_decoder"])
def test_score_is_the_mean_log_probability_of_the_tokens(family, generation, outputs):  # noqa: F811
    """Against a second forward pass over the finished text, up to the end token and with it."""
    tiny = tiny_models.FAMILIES[family]()
    captioner = load_captioner(tiny.model, tiny.processor)
    clips = [make_clip(seed) for seed in range(6)]
    settings = {**generation, "max_new_tokens": 8, "eos_token_id": EOS[family]}
    torch.manual_seed(0)
    texts = captioner.generate(clips, None, Weighting(), **settings)
    output = outputs[0][0]
    lengths = set()
    for text, clip, ids in zip(texts, clips, output.sequences, strict=True):
        ends = (ids[1:] == EOS[family]).nonzero()
        ids = ids[: int(ends[0]) + 2] if len(ends) else ids
        lengths.add(len(ids))
        pixels = captioner.preprocess(clip)
        with torch.no_grad():
            if family == "git":
                logits = tiny.model(input_ids=ids[None], pixel_values=pixels[None]).logits[0, -len(ids) :]
            else:
                states = tiny.model.encoder(pixel_values=pixels).last_hidden_state.flatten(0, 1)[None]
                encoded = BaseModelOutput(last_hidden_state=states)
                logits = tiny.model(encoder_outputs=encoded, decoder_input_ids=ids[None]).logits[0]
        chosen = logits[:-1].log_softmax(-1).gather(1, ids[1:, None])
        assert text.score == pytest.approx(float(chosen.mean()), abs=1e-4)
    assert (
        len(lengths) > 1 or "do_sample" in generation
    )  # some texts end early, so that what follows their end could have been counted
    if generation == {"num_beams": 3}:
        assert [t.score for t in texts] == pytest.approx(output.sequences_scores.tolist(), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_follows_the_callers_seed(family, outputs):  # noqa: F811
    tiny = tiny_models.FAMILIES[family]()
    captioner = load_captioner(tiny.model, tiny.processor)
    clips = [make_clip(seed) for seed in range(2)]
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        captioner.generate(clips, None, Weighting(), do_sample=True, temperature=2.0, max_new_tokens=8)
    torch.manual_seed(1)
    plain = generate_plainly(family, tiny, clips, do_sample=True, temperature=2.0, max_new_tokens=8)
    first, second, other = (output.sequences for output, _ in outputs[:3])
    assert torch.equal(first, second)
    assert torch.equal(first, plain.sequences)
    assert not torch.equal(first, other)


def test_blip_continues_a_prompt_as_its_own_generate_does():
    tiny = tiny_models.blip()
    captioner = load_captioner(tiny.model, tiny.processor)
    clip = make_clip(0, num_frames=1)
    (text,) = captioner.generate([clip], None, Weighting(), prompt="w5 w9", max_new_tokens=4)
    inputs = tiny.processor(images=list(clip.pixels), text="w5 w9", return_tensors="pt")
    plain = tiny.model.generate(**inputs, max_new_tokens=4)
    assert text.text == tiny.processor.decode(plain[0], skip_special_tokens=True)
    assert text.text.startswith("w5 w9 ")


@pytest.mark.parametrize("num_frames, limit", [(None, 1), (3, 3)])
def test_git_takes_as_many_frames_as_it_has_time_embeddings(num_frames, limit, outputs):  # noqa: F811
    tiny = tiny_models.git(num_frames)
    captioner = load_captioner(tiny.model, tiny.processor)
    assert captioner.max_frames == limit
    with pytest.raises(ValueError, match=f"at most {limit} frames a clip, got {limit + 1}"):
        captioner.generate([make_clip(0, limit + 1)], None, Weighting())
    clip = make_clip(0, limit)
    captioner.generate([clip], None, Weighting(), max_new_tokens=3)
    pixels = captioner.preprocess(clip)
    plain = tiny.model.generate(
        pixel_values=pixels if num_frames is None else pixels[None],
        max_new_tokens=3,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert all(torch.equal(a, b) for a, b in zip(outputs[0][0].scores, plain.scores, strict=True))


@pytest.mark.parametrize(
    "maps, weighting, generation, message",
    [
        (None, PRUNE, {}, "mode 'prune' got no log_densities"),
        ([make_map(0)], Weighting(), {}, "mode 'none' got log_densities"),
        ([make_map(0, 3)], PRUNE, {}, r"log_densities\[0\] must be \(2, h, w\) float, got \(3, 9, 11\)"),
        ([make_map(0).long()], PRUNE, {}, r"must be \(2, h, w\) float, got \(2, 9, 11\) torch.int64"),
        ([make_map(0), make_map(1)], PRUNE, {}, "got 2 log_densities for 1 clips"),
        ([torch.full((2, 9, 11), float("nan"))], PRUNE, {}, "NaN"),
        (None, Weighting(), {"num_return_sequences": 2, "num_beams": 2}, "num_return_sequences is 2, not 1"),
        (None, Weighting(), {"num_beens": 2}, "num_beens"),
        (None, Weighting(), {"mode": "scale", "keep_ratio": 0.1}, "keep_ratio, mode: settings of the captioner, for"),
    ],
)
def test_wrong_use_is_refused(maps, weighting, generation, message):
    tiny = tiny_models.vision_encoder_decoder()
    captioner = load_captioner(tiny.model, tiny.processor)
    with pytest.raises(ValueError, match=message):
        captioner.generate([make_clip(0)], maps, weighting, **generation)


def test_several_captions_a_clip_are_refused_wherever_they_are_asked_for():
    tiny = tiny_models.blip()
    captioner, clips = load_captioner(tiny.model, tiny.processor), [make_clip(0), make_clip(1)]
    several = transformers.GenerationConfig.from_dict({**tiny.model.generation_config.to_dict(), "num_beams": 2})
    several.num_return_sequences = 2
    with pytest.raises(ValueError, match="num_return_sequences is 2, not 1"):
        captioner.generate(clips, None, Weighting(), generation_config=several, max_new_tokens=3)
    alone = captioner.generate(clips[1:], None, Weighting(), num_beams=2, max_new_tokens=3)
    options = {"generation_config": several, "num_return_sequences": 1, "max_new_tokens": 3}
    assert captioner.generate(clips, None, Weighting(), **options)[1].text == alone[0].text
    with pytest.raises(ValueError, match="num_return_sequences is None, not 1"):
        captioner.generate(clips, None, Weighting(), num_return_sequences=None)


def test_no_clips_give_no_captions():
    tiny = tiny_models.blip()
    assert load_captioner(tiny.model, tiny.processor).generate([], None, Weighting()) == []


def test_a_geometry_that_is_not_known_is_refused_where_maps_are_laid_over_frames():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    class Stretching(CLIPImageProcessorPil):
        def resize(self, image: Any, **kwargs: Any) -> Any:
            return super().resize(image, **kwargs)

    with pytest.raises(ValueError, match=r"Stretching makes of a frame.*its own resize"):
        FramePreprocessor(Stretching()).seen_box(40, 60)
    small = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 32, "width": 32})
    with pytest.raises(ValueError, match="smaller than the crop"):
        FramePreprocessor(small).seen_box(40, 60)
    with pytest.raises(ValueError, match="longest_edge"):
        FramePreprocessor(CLIPImageProcessorPil(size={"shortest_edge": 16, "longest_edge": 64})).seen_box(40, 60)


def test_pixels_of_another_size_than_the_model_reads_are_refused():
    tiny = tiny_models.blip()
    tiny.processor.image_processor.size = {"height": 24, "width": 24}
    captioner = load_captioner(tiny.model, tiny.processor)
    with pytest.raises(ValueError, match=r"gives 24x24 pixels, the model reads \(32, 32\)"):
        captioner.generate([make_clip(0)], None, Weighting())
