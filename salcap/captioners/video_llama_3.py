"""VideoLLaMA3: any resolution, tokens of unchanged patches left out. https://arxiv.org/abs/2501.13106"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
from transformers.models.video_llama_3.image_processing_pil_video_llama_3 import smart_resize

from salcap.captioners.family import ClipBatch
from salcap.captioners.multimodal import ClipFeatures
from salcap.captioners.packed_patches import PackedCaptioner, PackedFrames
from salcap.captioners.visual_tokens import ClipTokens
from salcap.frames import Frames

LEAST_CHANGE = 0.1  # of a group's mean value, in 1 / 255, for its token to be read: as in the family's own processor


class VideoPatches(PackedFrames):
    """Frames packed as this family's video processor does it: the frames of a clip share the most pixels."""

    def __init__(self, image_processor: Any) -> None:
        super().__init__(image_processor)
        if not hasattr(image_processor, "use_token_compression"):  # it has settings for images, of which groups are 1
            self.merge_size = 2

    def frame_size(self, num_frames: int, height: int, width: int) -> tuple[int, int]:
        least, most = self.pixel_limits
        return smart_resize(height, width, factor=self.factor, min_pixels=least, max_pixels=most // num_frames)


class VideoLlama3Captioner(PackedCaptioner):
    """``VideoLlama3ForConditionalGeneration``: the family itself drops tokens behind the encoder whose patches did not
    change since the frame before; "prune" drops others before it. Every frame keeps at least one token.
    """

    transformers_class = "VideoLlama3ForConditionalGeneration"
    preprocessor = VideoPatches
    video_defaults: ClassVar[Mapping[str, Any]] = {
        "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28},
        "image_mean": IMAGENET_STANDARD_MEAN,
        "image_std": IMAGENET_STANDARD_STD,
        "patch_size": 14,
        "temporal_patch_size": 1,
        "merge_size": 2,
        "use_token_compression": True,
    }

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
        if not getattr(self.image_processor, "use_token_compression", True):
            return [torch.ones(count, dtype=torch.bool, device=groups.device) for count in plan.counts]
        change = (groups[1:] - groups[:-1]).abs().mean(-1) * 255 > LEAST_CHANGE
        change = torch.cat([torch.ones_like(groups[:1, :, 0], dtype=torch.bool), change])
        masks = [plan.prune(frame, row[:, None].float())[:, 0] > 0 for frame, row in enumerate(change)]
        return [mask if bool(mask.any()) else torch.arange(len(mask), device=mask.device) == 0 for mask in masks]
