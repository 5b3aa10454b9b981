"""Qwen2-VL: frames in pairs, rotary positions in time, height and width. https://arxiv.org/abs/2409.12191"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from salcap.captioners.family import ClipBatch
from salcap.captioners.multimodal import ClipFeatures
from salcap.captioners.packed_patches import PackedCaptioner
from salcap.captioners.visual_tokens import ClipTokens
from salcap.frames import Frames


class Qwen2VLCaptioner(PackedCaptioner):
    """``Qwen2VLForConditionalGeneration``: the tokens that stay keep the positions that they have in the unpruned
    prompt; a coarse token has the rounded mean of the positions it stands for. Two frames share their tokens and maps.
    """

    transformers_class = "Qwen2VLForConditionalGeneration"

    def run_tower(self, patches: Tensor, grid_thw: Tensor, **precomputed: Tensor) -> Tensor:
        return self.model.model.visual(patches, grid_thw=grid_thw, **precomputed).pooler_output

    def expand(self, frames: Frames, counts: Sequence[int]) -> list[str]:
        return [self.placeholder_token * sum(counts)]

    def language_inputs(
        self,
        batch: ClipBatch,
        plans: Sequence[ClipTokens],
        clips: list[ClipFeatures],
        inputs: dict[str, Tensor],
        prompt: str,
    ) -> dict[str, Any]:
        places = {"position_ids": self.position_ids(batch, plans, inputs, prompt)}
        return super().language_inputs(batch, plans, clips, inputs, prompt) | places

    def rope_options(self, batch: ClipBatch) -> dict[str, Any]:
        """More keywords of the model's ``get_rope_index``."""
        return {}

    def position_ids(
        self, batch: ClipBatch, plans: Sequence[ClipTokens], inputs: dict[str, Tensor], prompt: str
    ) -> Tensor:
        """(4, B, L): place among the tokens, time, row, column."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        num_groups = [[pixels.shape[1] * pixels.shape[2]] * len(pixels) for pixels in batch.clip_pixels]
        pairs = zip(batch.clips, num_groups, strict=True)
        whole = self.tokenize([self.prompt_ids(frames, counts, prompt) for frames, counts in pairs])
        whole_visual = whole["input_ids"] == self.placeholder_id
        rope, _ = self.model.model.get_rope_index(
            whole["input_ids"],
            mm_token_type_ids=2 * whole_visual.int(),
            video_grid_thw=self.grid_thw(batch),
            attention_mask=whole["attention_mask"],
            **self.rope_options(batch),
        )
        positions = ids.new_zeros(4, *ids.shape)
        positions[0] = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
        text, whole_text = ids != self.placeholder_id, ~whole_visual
        for row, (plan, counts) in enumerate(zip(plans, num_groups, strict=True)):
            text_rows = rope[:, row, whole_text[row] & whole["attention_mask"][row].bool()]
            positions[1:, row, text[row] & mask[row].bool()] = text_rows
            frames = rope[:, row, whole_visual[row]].mT.float().split(counts)
            kept = torch.cat([plan.prune(frame, places) for frame, places in enumerate(frames)])
            positions[1:, row, ~text[row]] = kept.round().long().mT
        return positions
