"""A family's loss runs along the code path that generates: the same numbers, and gradients to all that is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_multimodal
import torch
from test_captioners import make_clip, make_map

from salcap.captioners import load_captioner
from salcap.captioners.family import CaptionerFamily, ClipBatch, Generation
from salcap.config import Weighting

FAMILIES = {**tiny_models.FAMILIES, "mini": tiny_models.mini, **tiny_multimodal.FAMILIES}
FAMILIES["blip_2_t5"] = lambda: tiny_multimodal.blip_2("t5")
WEIGHTING = Weighting("scale+bias+prune", keep_ratio=0.5, strength=0.7)
GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": 5}


def load(family: str) -> Any:
    tiny = FAMILIES[family]()
    return load_captioner(tiny.model, tiny.processor)


def generated_ids(captioner: CaptionerFamily, *arguments: Any) -> tuple[list[list[int]], list[float]]:
    """The tokens that a captioner writes of clips that share a call, up to the end token, and their mean scores."""
    results: list[Generation] = []
    original = type(captioner).generate_batch

    def listen(batch: ClipBatch, generation: dict[str, Any]) -> Generation:
        results.append(original(captioner, batch, generation))
        return results[-1]

    captioner.generate_batch = listen  # type: ignore[method-assign]
    texts = captioner.generate(*arguments, **GREEDY)
    del captioner.generate_batch  # type: ignore[method-assign]
    ends, captions = captioner.eos_token_ids({}), []
    for result in results:
        for row in result.output.sequences[:, -len(result.output.scores) :].tolist():
            end = next((place for place, token in enumerate(row) if token in ends), len(row))
            captions.append(row[: end + 1])
    return captions, [text.score for text in texts]


def loss_of(captioner: CaptionerFamily, *arguments: Any) -> torch.Tensor:
    return torch.stack([given.loss() for given in captioner.give(*arguments)]).sum()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_loss_is_what_generation_scored(family: str) -> None:
    captioner = load(family)
    captioner.gain = 1.3
    clips, maps = [make_clip(0, 2), make_clip(1, 2)], [make_map(0, 2), make_map(1, 2)]
    captions, scores = generated_ids(captioner, clips, maps, WEIGHTING)
    for caption in captions:  # given captions are as long as they are: batches pad them
        assert 1 <= len(caption) <= 5
    captions[0] = captions[0][:3]
    alone = [loss_of(captioner, [c], [m], WEIGHTING, [ids]) for c, m, ids in zip(clips, maps, captions, strict=True)]
    alone = [loss.detach() for loss in alone]
    assert -float(alone[1]) / len(captions[1]) == pytest.approx(scores[1], abs=1e-3)
    assert float(loss_of(captioner, clips, maps, WEIGHTING, captions).detach()) == pytest.approx(
        float(sum(alone)), rel=1e-3
    )


@pytest.mark.parametrize("family", ["blip", "mini", "instructblipvideo", "llava_onevision", "qwen2_vl", "smolvlm"])
def test_a_folder_brings_back_the_captioner_and_its_saliency(family: str, tmp_path: Path) -> None:
    captioner = load(family)
    captioner.tune("center", WEIGHTING, 1.7)
    captioner.model.save_pretrained(tmp_path)
    captioner.save_processor(tmp_path)
    again = load_captioner(str(tmp_path))
    assert (again.default_saliency, again.default_weighting, again.gain) == ("center", WEIGHTING, 1.7)
    clips, maps = [make_clip(0)], [make_map(0)]
    (one,), (other,) = (each.generate(clips, maps, WEIGHTING, **GREEDY) for each in (captioner, again))
    assert (one.text, one.visual_tokens) == (other.text, other.visual_tokens)
    assert one.score == pytest.approx(other.score, abs=1e-4)


def test_defaults_in_a_config_that_cannot_be_are_refused() -> None:
    tiny = tiny_models.git()
    tiny.model.config.saliency = {"backbone": "center", "mode": "prun"}
    with pytest.raises(ValueError, match=r"saliency in the config of .*: unknown mode 'prun'"):
        load_captioner(tiny.model, tiny.processor)


def test_a_git_for_photographs_learns_times() -> None:
    tiny = tiny_models.git(None)
    captioner = load_captioner(tiny.model, tiny.processor)
    with pytest.raises(ValueError, match="takes at most 1 frames a clip, got 2"):
        captioner.generate([make_clip(0, 2)], None, Weighting())
    captioner.make_room(2)
    loss_of(captioner, [make_clip(0, 2)], None, Weighting(), [captioner.caption_ids("w1", 9)]).backward()
    assert all(time.grad.any() for time in tiny.model.git.img_temporal_embedding)
    captioner.make_room(5)  # what was learned once stays
    assert captioner.max_frames == 2


@pytest.mark.parametrize(
    "family",
    ["git", "blip", "vision_encoder_decoder", "mini", "blip_2", "blip_2_t5", "llava_onevision", "qwen3_vl", "smolvlm"],
)
def test_gradients_reach_the_vision_encoder_the_words_and_the_gain(family: str) -> None:
    captioner = load(family)
    captioner.model.train()
    captioner.gain = gain = torch.ones((), requires_grad=True)
    clips, maps = [make_clip(0, 2), make_clip(1, 1)], [make_map(0, 2), make_map(1, 1)]
    ids = [captioner.caption_ids("w1 w2  w3", 20), captioner.caption_ids("w4", 20)]
    assert [len(row) for row in ids] == [4, 2]
    loss_of(captioner, clips, maps, WEIGHTING, ids).backward()
    gradients = {name: p.grad for name, p in captioner.model.named_parameters() if p.grad is not None}
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())
    learning = {name for name, gradient in gradients.items() if bool(gradient.any())}
    marks = ("vision", "visual.", "image_encoder", "encoder.embeddings", "encoder.trunk")
    assert any(mark in name for name in learning for mark in marks), sorted(learning)
    assert captioner.generator.get_input_embeddings().weight.grad.any()
    assert gain.grad is not None
    assert float(gain.grad) != 0.0
