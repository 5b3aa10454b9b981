"""LLaVA-OneVision: SigLIP, a projector, bilinear pooling to half the side. https://arxiv.org/abs/2408.03326"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from salcap.captioners.family import ClipBatch
from salcap.captioners.multimodal import ClipFeatures, MultimodalCaptioner, split_clips
from salcap.captioners.pooled_patches import encode_pooled
from salcap.captioners.preprocessing import WholeFrames, patch_grid
from salcap.captioners.visual_tokens import ClipTokens
from salcap.frames import Frames


class LlavaOnevisionCaptioner(MultimodalCaptioner):
    """``LlavaOnevisionForConditionalGeneration``: frames as a video. "prune" drops patches that no kept token is pooled
    of, before the vision encoder. The newline token behind the last frame always stays.
    """

    transformers_class = "LlavaOnevisionForConditionalGeneration"
    preprocessor = WholeFrames
    num_extra_tokens = 1  # the newline

    def look(self, batch: ClipBatch, prompt: str) -> tuple[list[ClipTokens], list[ClipFeatures]]:
        vision, pixels = self.model.config.vision_config, torch.cat(list(batch.clip_pixels))
        rows, columns = patch_grid(pixels, vision.image_size, vision.patch_size)
        plans = self.plan(batch, self.token_grid(rows, columns), num_prefix_tokens=0)
        num_prefix_tokens = int(self.model.config.vision_feature_select_strategy == "default")  # else there are none
        if not any(plan.prunes for plan in plans):
            states = self.before_pooling(self._encode_pixels(pixels)[:, num_prefix_tokens:])
            return plans, split_clips(self.after_pooling(self.pool(states)), batch)
        clips = encode_pooled(
            lambda pixels: self.before_pooling(self._encode_pixels(pixels)),
            _embeddings_of(self.model.model.vision_tower),
            batch.clip_pixels,
            plans,
            self.pool(torch.eye(rows * columns, device=self.device)[None])[0],
            num_prefix_tokens,
        )
        return plans, [[self.after_pooling(frame) for frame in clip] for clip in clips]

    def token_grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Of a frame with so many patches."""
        return (rows + 1) // 2, (columns + 1) // 2

    def pool(self, patches: Tensor) -> Tensor:
        """Weighted means of patches: (R, N, D) to (R, M, D)."""
        return self.model.model.apply_pooling(patches)

    def before_pooling(self, states: Tensor) -> Tensor:
        """What the encoder's states become before they are pooled."""
        return self.model.model.multi_modal_projector(states)

    def after_pooling(self, pooled: Tensor) -> Tensor:
        """What pooled states become, for the language model to read."""
        return pooled

    def finish(self, batch: ClipBatch, index: int, plan: ClipTokens, clip: ClipFeatures) -> ClipFeatures:
        newline = self.model.model.image_newline[None].to(clip[-1].device, clip[-1].dtype)
        return [*clip[:-1], torch.cat([clip[-1], newline])]

    def expand(self, frames: Frames, counts: Sequence[int]) -> list[str]:
        return [self.placeholder_token * sum(counts)]

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        """The hidden states that the projector reads, (R, P + N, D)."""
        states = self.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        layer = self.model.config.vision_feature_layer
        return states[layer] if isinstance(layer, int) else torch.cat([states[index] for index in layer], -1)


def _embeddings_of(tower: nn.Module) -> Any:
    """The module of a CLIP-like tower that makes embeddings of patches."""
    return next(module for name, module in tower.named_modules() if name.split(".")[-1] == "embeddings")
