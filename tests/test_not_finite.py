"""Output that is not finite: a failed record that says why, in JSON that every reader takes."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import tiny_models
import tiny_multimodal
import torch
from test_captioners import make_clip

from salcap import SaliencyCaptioner
from salcap.captioners.generation import WatchedLogits
from salcap.strict_json import to_json

MAKERS = {**tiny_models.FAMILIES, **tiny_multimodal.FAMILIES, "mini": tiny_models.mini}
SEARCHES = [{}, {"num_beams": 3}, {"do_sample": True}]


def load(family: str) -> SaliencyCaptioner:
    tiny = MAKERS[family]()
    return SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, saliency="center", mode="scale")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("search", SEARCHES, ids=["greedy", "beams", "sampling"])
@pytest.mark.parametrize("family", MAKERS)
def test_only_the_clip_whose_logits_are_not_finite_fails(family, search, bad):
    captioner = load(family)
    generator, num_beams = captioner.captioner.generator, search.get("num_beams", 1)
    clips = [make_clip(0), make_clip(1)]
    calls = 0

    def spoil(_module, _args, output):
        nonlocal calls
        calls += 1
        if calls > 1 and len(output.logits) == 2 * num_beams:  # not the first token's, and the second clip's alone
            output.logits[num_beams:, -1, 5] = bad
        return output

    forward = generator.register_forward_hook(spoil, prepend=True)
    good, failed = captioner.caption_batch(clips, num_frames=2, max_new_tokens=4, min_new_tokens=3, **search)
    if not search.get("do_sample"):  # which ends a batch as a whole: alone, both are spared by the hook
        assert failed.text is None
        assert failed.error_class == "FloatingPointError"
        assert "logits that are NaN or infinite in float32" in failed.error
        assert json.loads(to_json(failed.to_dict()))["score"] is None
    assert good.error is None
    assert math.isfinite(good.score)
    forward.remove()


@pytest.mark.parametrize("search", SEARCHES, ids=["greedy", "beams", "sampling"])
def test_the_message_names_the_dtype_and_better_ones(search):
    captioner = load("blip")
    captioner.captioner.model.to(torch.bfloat16)
    with torch.no_grad():
        captioner.captioner.model.text_decoder.cls.predictions.bias[3] = math.nan
    with pytest.raises(FloatingPointError, match=r"NaN or infinite in bfloat16: use dtype float32"):
        captioner.caption(make_clip(0), num_frames=2, max_new_tokens=3, **search)


def test_what_follows_the_end_of_a_caption_does_not_count():
    watched = WatchedLogits()
    steps = torch.ones(4, 2, 1, 3)  # four tokens of two clips
    steps[2:, 0] = math.nan  # the first one's caption ended with its second token
    steps[3, 1] = math.inf
    for step in steps:
        watched.note(None, (), SimpleNamespace(logits=step))
    sequences = torch.tensor([[9, 5, 2, 0, 0], [9, 5, 6, 7, 8]])
    assert watched.finite(2) == [False, False]
    assert watched.finite(2, sequences, [2]) == [True, False]


def test_a_map_with_nan_fails_its_clip_alone(monkeypatch):
    captioner = load("blip")
    predict, clips = captioner.saliency.predict, [make_clip(0), make_clip(1)]

    def broken(frames, **options):
        maps = predict(frames, **options)
        return maps.fill_(math.nan) if torch.equal(frames.pixels, clips[1].pixels) else maps

    monkeypatch.setattr(captioner.saliency, "predict", broken)
    records = [captioner.caption(clips[0], num_frames=2, max_new_tokens=2)]
    assert math.isfinite(records[0].score)
    with pytest.raises(ValueError, match="no NaN"):
        captioner.caption(clips[1], num_frames=2, max_new_tokens=2)


def test_json_has_null_for_numbers_that_are_not_finite():
    record = {"scores": [1.5, math.nan, (math.inf, 2)], "nested": {"loss": -math.inf}, "words": "NaN"}
    assert json.loads(to_json(record)) == {"scores": [1.5, None, [None, 2]], "nested": {"loss": None}, "words": "NaN"}
