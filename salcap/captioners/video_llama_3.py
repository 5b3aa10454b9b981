"""VideoLLaMA3: any resolution, tokens of unchanged patches left out. https://arxiv.org/abs/2501.13106"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from salcap.captioners.family import ClipBatch
from salcap.captioners.multimodal import ClipFeatures
from salcap.captioners.packed_patches import PackedCaptioner, PackedFrames
from salcap.captioners.visual_tokens import ClipTokens
from salcap.frames import Frames

LEAST_CHANGE = 0.1  # of a group's mean value, in 1 / 255, for its token to be read: as in the family's own processor


class VideoPatches(PackedFrames):
    """Frames packed as this family's video processor does it: 2 x 2 patches a token."""

    merge_size = 2  # of images the processor makes groups of 1


class VideoLlama3Captioner(PackedCaptioner):
    """``VideoLlama3ForConditionalGeneration``: the family itself drops tokens behind the encoder whose patches did not
    change since the frame before; "prune" drops others before it. Every frame keeps at least one token.
    """

    transformers_class = "VideoLlama3ForConditionalGeneration"
    preprocessor = VideoPatches

    def run_tower(self, patches: Tensor, grid_thw: Tensor, **precomputed: Tensor) -> Tensor:
        model = self.model.model
        sides = torch.full((len(grid_thw),), self.preprocess.side, device=grid_thw.device)
        tokens = model.vision_model(pixel_values=patches, grid_thw=grid_thw, merge_sizes=sides, **precomputed)
        return model.projector(tokens.last_hidden_state)

    def finish(self, batch: ClipBatch, index: int, plan: ClipTokens, clip: ClipFeatures) -> ClipFeatures:
        changed = self._changed(batch, index, plan)
        return [frame[mask] for frame, mask in zip(clip, changed, strict=True)]

    def bias_rows(self, batch: ClipBatch, index: int, plan: ClipTokens, clip: ClipFeatures) -> list[Tensor]:
        rows = plan.bias().split(plan.counts)
        return [row[mask] for row, mask in zip(rows, self._changed(batch, index, plan), strict=True)]

    def expand(self, frames: Frames, counts: Sequence[int]) -> list[str]:
        pairs = zip(frames.pts_seconds.tolist(), counts, strict=True)
        return [",".join(f"Time {time:.1f}s:{self.placeholder_token * count}" for time, count in pairs)]

    def _changed(self, batch: ClipBatch, index: int, plan: ClipTokens) -> list[Tensor]:
        """For each frame which of its tokens are read, (n,) bool; a coarse one is where any of its groups changed."""
        groups = batch.clip_pixels[index].flatten(1, 2).flatten(2)
        change = (groups[1:] - groups[:-1]).abs().mean(-1) * 255 > LEAST_CHANGE
        change = torch.cat([torch.ones_like(groups[:1, :, 0], dtype=torch.bool), change])
        masks = [plan.prune(frame, row[:, None].float())[:, 0] > 0 for frame, row in enumerate(change)]
        return [mask if bool(mask.any()) else torch.arange(len(mask), device=mask.device) == 0 for mask in masks]
