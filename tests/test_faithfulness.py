"""Deletion faithfulness: the sign is that of maps known to matter, and dictating a caption changes nothing else."""

from __future__ import annotations

import pytest
import tiny_models
import tiny_multimodal
import torch
from transformers.modeling_outputs import BaseModelOutput

from salcap.captioners import load_captioner
from salcap.captioners.family import ClipBatch
from salcap.config import Weighting
from salcap.evaluation.compare import NONE, Arm, run_arms
from salcap.evaluation.faithfulness import HALF, FaithfulnessMeter, greedy_tokens, log_prob, negated
from salcap.frames import Frames
from salcap.saliency import SaliencyModel, create_saliency
from salcap.saliency_captioner import SaliencyCaptioner

FAMILIES = {**tiny_models.FAMILIES, "mini": tiny_models.mini, "blip_2": tiny_multimodal.FAMILIES["blip_2"]}
FAMILIES |= {name: tiny_multimodal.FAMILIES[name] for name in ("internvl", "qwen2_vl")}
COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], dtype=torch.uint8)


def noise(seed: int, num_frames: int = 2) -> Frames:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (num_frames, 3, 48, 40), generator=generator, dtype=torch.uint8)
    return Frames(pixels, torch.arange(float(num_frames)))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_dictating_gives_exactly_the_score_of_greedy_search(family):
    tiny = FAMILIES[family]()
    captioner, frames = load_captioner(tiny.model, tiny.processor), noise(0)
    maps = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(1))
    (plain,) = captioner.generate([frames], None, Weighting(), num_beams=1, max_new_tokens=7)
    tokens, score = greedy_tokens(captioner, frames, num_beams=3, max_new_tokens=7)
    assert score == plain.score
    assert captioner.tokenizer.decode(tokens, skip_special_tokens=True).strip() == plain.text
    assert log_prob(captioner, frames, tokens, maps, Weighting("prune", keep_ratio=1.0)) == plain.score
    assert log_prob(captioner, frames, tokens, weighting=Weighting(), max_new_tokens=2) == plain.score
    assert log_prob(captioner, frames, tokens, maps) != plain.score
    other = [*tokens[:-1], tokens[-1] + 1]
    assert log_prob(captioner, frames, other, maps, Weighting("prune", keep_ratio=1.0)) < plain.score


def scene(seed: int) -> tuple[Frames, int]:
    """A still whose left half is of one colour and whose right half is noise; and the colour."""
    generator = torch.Generator().manual_seed(seed)
    side = tiny_models.SIDE
    pixels = torch.randint(0, 256, (1, 3, side, side), generator=generator, dtype=torch.uint8)
    colour = int(torch.randint(len(COLOURS), (1,), generator=generator))
    pixels[..., : side // 2] = COLOURS[colour][:, None, None]
    return Frames(pixels, torch.zeros(1), f"scene {seed}"), colour


@pytest.fixture(scope="module")
def colour_namer():
    """A captioner that has learnt to name the colour of the left half from any half of the patches."""
    tiny = tiny_models.vision_encoder_decoder()
    captioner, model = load_captioner(tiny.model, tiny.processor), tiny.model
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    scenes = [scene(seed) for seed in range(320)]
    pixels = [captioner.preprocess(frames) for frames, _ in scenes]
    for step in range(50):
        chosen = [32 * step % 320 + i for i in range(32)]
        halved = Weighting("prune", policy="random", keep_ratio=0.5, seed=step)
        batch = ClipBatch(
            [scenes[i][0] for i in chosen], [pixels[i] for i in chosen], [torch.zeros(1, 4, 4)] * 32, halved
        )
        states = BaseModelOutput(last_hidden_state=captioner.encode(batch)[0])
        labels = torch.tensor([[10 + scenes[i][1], 2] for i in chosen])
        optimizer.zero_grad()
        model(encoder_outputs=states, labels=labels).loss.backward()
        optimizer.step()
    return captioner


class Half(SaliencyModel):
    """A map that is high on one side; impossible at the very edge of the other."""

    def __init__(self, left: bool) -> None:
        super().__init__()
        self.name, self.left = ("left" if left else "right"), left

    def forward(self, pixels, pts_seconds=None):
        maps = torch.linspace(0.0, -6.0, 8).expand(len(pixels), 8, 8).clone()
        maps[..., -1] = -torch.inf
        return maps if self.left else maps.flip(-1)


def test_sign_is_that_of_a_map_known_to_matter(colour_namer):
    captioner = SaliencyCaptioner(colour_namer, create_saliency("uniform"), Weighting())
    backbones = {"left": Half(True), "right": Half(False), "uniform": create_saliency("uniform")}
    arms = [NONE, *(Arm(name, "prune", "top", 0.25) for name in backbones)]
    clips = [(str(seed), lambda seed=seed, **_: scene(seed)[0]) for seed in range(1000, 1012)]
    meter = FaithfulnessMeter(10)
    runs, failures = run_arms(captioner, arms, backbones, clips, observers=[meter], num_frames=1, max_new_tokens=4)
    assert not failures
    assert all(len(run.captions) == 12 for run in runs.values())
    found = meter.results(draws=200)
    assert set(found) == set(backbones)
    left, right, even = found["left"], found["right"], found["uniform"]
    assert left.num_clips == 10
    assert left.whole > -0.3  # it did learn
    assert left.difference.low > 0
    assert left.difference.value == pytest.approx(left.least_dropped - left.most_dropped)
    assert right.difference.value == pytest.approx(-left.difference.value, abs=1e-6)  # the halves change places
    assert (even.difference.low, even.difference.high) == (0, 0)


def test_negated_map_keeps_the_other_half(colour_namer):
    frames = scene(7)[0]
    tokens, _ = greedy_tokens(colour_namer, frames, max_new_tokens=4)
    left, right = (Half(left)(frames.pixels) for left in (True, False))
    assert log_prob(colour_namer, frames, tokens, negated(left)) == log_prob(colour_namer, frames, tokens, right, HALF)
    assert negated(left).isfinite().all()
    assert torch.equal(negated(-negated(left)), negated(left))


def test_no_backbone_no_result():
    meter = FaithfulnessMeter(3)
    assert meter.results() == {}
