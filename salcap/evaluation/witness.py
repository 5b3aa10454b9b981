"""What a captioner is really shown of a clip: the frames, their maps, and the patches that it keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from salcap.captioners.base import Captioner, GeneratedText
from salcap.config import Weighting
from salcap.frames import Frames
from salcap.saliency_captioner import SaliencyCaptioner
from salcap.weighting import PatchSelection, recorded_selections
from salcap.weighting.pooling import Box, Grid

_LENGTHS = ("max_length", "min_length", "max_new_tokens", "min_new_tokens")  # keywords of ``transformers``' generate


@dataclass(frozen=True, eq=False)
class KeptPatches:
    """What "prune" left of a clip.

    Attributes:
        grid: rows and columns of patches.
        box: (left, top, right, bottom) of the grid in fractions of the frame.
        kept: (F, N) bool, patches that stay as they are.
        merged: (F, N) bool, patches that are in coarse tokens only.
    """

    grid: Grid
    box: Box
    kept: Tensor
    merged: Tensor


@dataclass(frozen=True, eq=False)
class Shown:
    """What a captioner was shown of a clip.

    Attributes:
        frames: as chosen, or two views of each.
        log_density: (F, h, w); None where the mode looks at no map.
        patches: None where all stay.
    """

    frames: Frames
    log_density: Tensor | None
    patches: KeptPatches | None


def show(pipeline: SaliencyCaptioner, frames: Frames, request: Mapping[str, Any]) -> Shown:
    """Have a clip captioned, one word long, and listen to what the captioner gets and keeps.

    Args:
        request: keyword arguments of `SaliencyCaptioner.caption`.
    """
    witness = _Witness(pipeline.captioner)
    word = {**without_lengths(request), "num_beams": 1, "do_sample": False, "max_new_tokens": 1}
    SaliencyCaptioner(witness, pipeline.saliency, pipeline.weighting).caption(frames, **word)
    return witness.shown()


def without_lengths(request: Mapping[str, Any]) -> dict[str, Any]:
    """A captioning request without its keywords for the caption's length."""
    return {name: value for name, value in request.items() if name not in _LENGTHS}


class _Witness:
    """A captioner that remembers what it was asked and kept."""

    def __init__(self, captioner: Captioner) -> None:
        self._captioner = captioner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._captioner, name)

    def generate(
        self,
        clips: Sequence[Frames],
        log_densities: Sequence[Tensor] | None,
        weighting: Weighting,
        **generation: Any,
    ) -> list[GeneratedText]:
        self._clips, self._log_densities = clips, log_densities
        with recorded_selections() as self._selections:
            return self._captioner.generate(clips, log_densities, weighting, **generation)

    def shown(self) -> Shown:
        (frames,) = self._clips
        log_density = None if self._log_densities is None else self._log_densities[0]
        pruned = [(grid, selection) for grid, selection in self._selections if not selection.is_identity]
        if not pruned:
            return Shown(frames, log_density, None)
        box = self._captioner.seen_box(*frames.pixels.shape[-2:])
        return Shown(frames, log_density, _kept_patches(*pruned[0], box, len(frames)))


def _kept_patches(grid: Grid, selection: PatchSelection, box: Box, num_frames: int) -> KeptPatches:
    """Of the one clip of a selection; frames that share their tokens share the patches too."""
    kept = torch.zeros(selection.num_patches, dtype=torch.bool)
    kept[selection.keep_indices[0].cpu()] = True
    kept = kept.unflatten(0, (-1, math.prod(grid)))
    merge = selection.frame_merge
    merged = torch.zeros_like(kept) if merge is None else merge[0].any(1).cpu() & ~kept
    span = torch.arange(num_frames) // math.ceil(num_frames / len(kept))
    return KeptPatches(grid, box, kept[span], merged[span])
