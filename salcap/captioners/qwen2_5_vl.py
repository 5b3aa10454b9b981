"""Qwen2.5-VL: Qwen2-VL with window attention and times of frames. https://arxiv.org/abs/2502.13923"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from salcap.captioners.family import ClipBatch
from salcap.captioners.qwen2_vl import Qwen2VLCaptioner
from salcap.captioners.visual_tokens import ClipTokens


class Qwen2_5VLCaptioner(Qwen2VLCaptioner):
    """``Qwen2_5_VLForConditionalGeneration``: a pruned group stays in its window, a coarse token goes to the window
    around its middle.
    """

    transformers_class = "Qwen2_5_VLForConditionalGeneration"

    def pruned_places(self, batch: ClipBatch, plans: Sequence[ClipTokens]) -> dict[str, Tensor]:
        places = super().pruned_places(batch, plans)
        vision, unit = self.model.config.vision_config, self.preprocess.side**2
        window = vision.window_size // vision.spatial_merge_size // vision.patch_size
        group = places["position_ids"][::unit] // self.preprocess.side // window  # row and column of the window
        starts = places["cu_seqlens"] // unit
        frame = torch.arange(len(starts) - 1, device=group.device).repeat_interleave(starts.diff())
        keys = torch.stack([frame, *group.long().unbind(1)], 1)
        _, window_of_group, counts = keys.unique(dim=0, return_inverse=True, return_counts=True)
        ends = (counts * unit).cumsum(0, dtype=torch.int32)
        return places | {
            "window_index": window_of_group.argsort(stable=True),
            "cu_window_seqlens": torch.cat([ends.new_zeros(1), ends]),
        }

    def rope_options(self, batch: ClipBatch) -> dict[str, Any]:
        return {"second_per_grid_ts": [self._span_seconds(frames.pts_seconds) for frames in batch.clips]}

    def _span_seconds(self, pts_seconds: Tensor) -> float:
        """Seconds from one token in time to the next; a single frame counts as one second."""
        if len(pts_seconds) == 1:
            return 1.0
        return float(pts_seconds[-1] - pts_seconds[0]) / (len(pts_seconds) - 1) * self.preprocess.span
