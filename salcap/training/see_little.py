"""See-it-all teacher, see-very-little student (Bhardwaj et al., CVPR 2019, arXiv 1902.10640), of one captioner."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from salcap.captioners.likelihood import PADDING, GivenCaptions
from salcap.config import Weighting
from salcap.frames import Frames
from salcap.sampling import saliency_indices, uniform_indices
from salcap.training.finetune_settings import SeeLittle


class SeeLittleTeacher:
    """A captioner as it is now, which reads all frames, and what the same captioner is to learn from it.

    The student begins as the teacher and shares its output layer's meaning (the paper's serial training). Beside the
    cross-entropy of the captions it is pulled towards the teacher's distribution of each token (KL divergence), and
    towards its clip encoding: the mean of the visual tokens as saliency left them, our interpretation of the paper's
    encoding of a video (squared distance).
    """

    def __init__(self, captioner: Any, settings: SeeLittle) -> None:
        self._captioner, self._settings = copy.deepcopy(captioner), settings
        self._captioner.model.requires_grad_(False)

    def to(self, device: torch.device) -> None:
        """Move the teacher to a device."""
        self._captioner.model.to(device)

    @torch.no_grad()
    def give(
        self,
        frames: Sequence[Frames],
        maps: Sequence[Tensor] | None,
        weighting: Weighting,
        captions: Sequence[Sequence[int]],
    ) -> list[GivenCaptions]:
        """See `CaptionerFamily.give`."""
        given: list[GivenCaptions] = self._captioner.give(frames, maps, weighting, captions)
        return given

    def loss(self, learner: Sequence[GivenCaptions], teacher: Sequence[GivenCaptions]) -> Tensor:
        """What the student's captions differ from the teacher's, weighted, summed over tokens.

        Args:
            learner, teacher: of the same clips and captions.

        Raises:
            ValueError: a representation loss for a family without clip encodings.
        """
        ours, theirs = _by_clip(learner), _by_clip(teacher)
        total = torch.zeros((), device=learner[0].logits.device)
        for index, (logits, encoding) in ours.items():
            taught_logits, taught_encoding = theirs[index]
            told = F.kl_div(logits.log_softmax(-1), taught_logits.log_softmax(-1), reduction="sum", log_target=True)
            total = total + self._settings.prediction * told
            if self._settings.representation:
                if encoding is None or taught_encoding is None:
                    raise ValueError("this family gives no clip encoding: representation must be 0")
                apart = (encoding - taught_encoding).square().sum()
                total = total + self._settings.representation * apart * len(logits)
        return total


def choose_few(
    frames: Sequence[Frames], maps: Sequence[Tensor] | None, settings: SeeLittle
) -> tuple[list[Frames], list[Tensor] | None]:
    """The frames of each clip that the student reads, with their maps, which a choice by saliency needs."""
    chosen = []
    for place, clip in enumerate(frames):
        if settings.frames == "saliency":
            assert maps is not None  # see `FineTuning`
            chosen.append(saliency_indices(maps[place], clip.pts_seconds, settings.num_frames, clip.clip_seconds))
        else:
            chosen.append(uniform_indices(clip.pts_seconds, settings.num_frames, clip.clip_seconds))
    few = [clip.take(kept) for clip, kept in zip(frames, chosen, strict=True)]
    return few, None if maps is None else [rows[kept] for rows, kept in zip(maps, chosen, strict=True)]


def _by_clip(given: Sequence[GivenCaptions]) -> dict[int, tuple[Tensor, Tensor | None]]:
    """Each clip's logits (tokens, vocabulary) without padding, and its encoding (D,)."""
    found = {}
    for part in given:
        for row, index in enumerate(part.indices):
            encoding = None if part.clip_encodings is None else part.clip_encodings[row].float()
            found[index] = part.logits[row][part.captions[row] != PADDING].float(), encoding
    return found
