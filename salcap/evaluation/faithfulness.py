"""Deletion faithfulness: does a caption lose more where the salient half of the patches is dropped than where the
other half is?

After the deletion metric of RISE (Petsiuk et al., BMVC 2018), for captions: what falls is the log-probability that the
captioner gives to its own caption of the whole clip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from salcap.captioners.base import Captioner
from salcap.config import Weighting
from salcap.evaluation.bootstrap import DRAWS, Difference, paired_bootstrap
from salcap.evaluation.compare import NONE, Arm, Clip
from salcap.evaluation.witness import show, without_lengths
from salcap.frames import Frames
from salcap.records import Record, RecordFile, read_records
from salcap.saliency_captioner import SaliencyCaptioner

HALF = Weighting("prune", policy="top", keep_ratio=0.5)
_GREEDY = {"num_beams": 1, "do_sample": False}


@dataclass(frozen=True)
class Faithfulness:
    """Of one backbone's maps; each number is a mean over the clips of the mean log-probability per token.

    Attributes:
        whole: with all patches.
        least_dropped, most_dropped: without the least, the most salient half of the patches.
        difference: ``least_dropped - most_dropped``; above 0 where the map points at what the caption is made of.
    """

    num_clips: int
    whole: float
    least_dropped: float
    most_dropped: float
    difference: Difference


class FaithfulnessMeter:
    """An observer of `salcap.evaluation.compare.run_arms` that measures the first clips, for each backbone.

    The caption is the captioner's own without saliency, by greedy search.

    Args:
        num_clips: how many.
        file: where what was found is kept; the clips that it holds already are not measured again.
    """

    def __init__(self, num_clips: int, file: RecordFile | None = None) -> None:
        self.num_clips, self._file = num_clips, file
        kept = read_records(file.path) if file is not None and file.outcomes else ()
        self._found: dict[str, Record] = {record["id"]: record for record in kept}

    def __call__(self, clip: Clip, pipelines: Mapping[Arm, SaliencyCaptioner], request: Mapping[str, Any]) -> None:
        if clip.key in self._found or len(self._found) >= self.num_clips:
            return
        plain = pipelines[NONE]
        generation = {name: value for name, value in request.items() if name != "num_frames"}
        backbones = {arm.saliency: pipeline.saliency for arm, pipeline in pipelines.items() if arm.saliency}
        frames = show(plain, clip.frames(plain), request).frames
        tokens, whole = greedy_tokens(plain.captioner, frames, **generation)
        halves: dict[str, list[float]] = {}
        for name, backbone in backbones.items():
            halved = SaliencyCaptioner(plain.captioner, backbone, HALF)
            log_density = show(halved, clip.frames(plain), request).log_density
            assert log_density is not None
            halves[name] = [
                log_prob(plain.captioner, frames, tokens, maps, HALF, **generation)
                for maps in (log_density, negated(log_density))
            ]
        record = {"id": clip.key, "error_class": None, "whole": whole, "least_and_most_dropped": halves}
        if self._file is not None:
            self._file.write(record)
        self._found[clip.key] = record

    def results(self, draws: int = DRAWS) -> dict[str, Faithfulness]:
        """Backbone -> what was found; empty where no clip was seen."""
        records = list(self._found.values())[: self.num_clips]
        whole = float(np.mean([record["whole"] for record in records])) if records else math.nan
        found = {}
        for name in records[0]["least_and_most_dropped"] if records else ():
            least, most = np.array([record["least_and_most_dropped"][name] for record in records]).T
            difference = paired_bootstrap(least, most, draws=draws)
            found[name] = Faithfulness(len(records), whole, float(least.mean()), float(most.mean()), difference)
        return found


def greedy_tokens(captioner: Captioner, frames: Frames, **generation: Any) -> tuple[list[int], float]:
    """The tokens of a captioner's own caption without saliency by greedy search, and their mean log-probability."""
    scribe = _Scribe()
    captioner.generate([frames], None, Weighting(), **{**generation, **_GREEDY, "logits_processor": [scribe]})
    return scribe.tokens, scribe.mean_log_prob


def log_prob(
    captioner: Captioner,
    frames: Frames,
    tokens: Sequence[int],
    log_density: Tensor | None = None,
    weighting: Weighting = HALF,
    **generation: Any,
) -> float:
    """Mean log-probability per token of a given caption.

    As in `GeneratedText.score`, of the scores that greedy search goes by: after ``transformers``' logits processors.

    Args:
        tokens: as `greedy_tokens` gives them.
        log_density: (F, h, w); None where the mode is "none".
        generation: keyword arguments of ``transformers``' generate; their lengths are not looked at.
    """
    scribe = _Scribe(tokens)
    generation = {**without_lengths(generation), **_GREEDY, "max_new_tokens": len(tokens) + 1}
    maps = None if log_density is None else [log_density]
    captioner.generate([frames], maps, weighting, **{**generation, "logits_processor": [scribe]})
    return scribe.mean_log_prob


def negated(log_density: Tensor) -> Tensor:
    """The map that is high where ``log_density`` is low; impossible pixels count as the least likely of the others.

    Patches pool many pixels, so its top half is not quite the other half: on photographs they share 2 % (at most 6 %).
    """
    finite = log_density.isfinite()
    return -log_density.where(finite, log_density[finite].min())


class _Scribe:
    """A logits processor, behind ``transformers``' own, for one caption: it writes down or dictates the tokens."""

    def __init__(self, dictated: Sequence[int] | None = None) -> None:
        self._dictated = dictated
        self._log_probs: list[Tensor] = []
        self.tokens: list[int] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = len(self.tokens)
        if self._dictated is None:
            token = int(scores[0].argmax())
        elif step < len(self._dictated):
            token = self._dictated[step]
        else:  # a caption that its greatest length had cut off
            return scores
        self.tokens.append(token)
        self._log_probs.append(scores[0].float().log_softmax(-1)[token])
        if self._dictated is None:
            return scores
        return torch.full_like(scores, -math.inf).index_fill(1, scores.new_tensor([token], dtype=torch.long), 0.0)

    @property
    def mean_log_prob(self) -> float:
        return float(reduce(torch.add, self._log_probs) / len(self._log_probs))
