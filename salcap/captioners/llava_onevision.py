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

    def look(self, batch: ClipBatch, prompt: str) -> tuple[list[ClipTokens], list[ClipFeatures]]:
        model, (rows, columns) = self.model.model, self.patch_grid(batch.clip_pixels[0])
        plans = self.plan(batch, ((rows + 1) // 2, (columns + 1) // 2), num_prefix_tokens=0)
        if any(plan.prunes for plan in plans):
            identity = torch.eye(rows * columns, device=self.model.device)[None]
            return plans, encode_pooled(
                lambda pixels: model.multi_modal_projector(self.encode_pixels(pixels)),
                embeddings_of(model.vision_tower),
                batch.clip_pixels,
                plans,
                model.apply_pooling(identity)[0],
                self.num_prefix_tokens,
            )
        pixels = torch.cat(list(batch.clip_pixels))
        projected = model.multi_modal_projector(self.encode_pixels(pixels)[:, self.num_prefix_tokens :])
        return plans, split_clips(model.apply_pooling(projected), batch)

    def finish(self, batch: ClipBatch, index: int, plan: ClipTokens, clip: ClipFeatures) -> ClipFeatures:
        newline = self.model.model.image_newline[None].to(clip[-1].device, clip[-1].dtype)
        return [*clip[:-1], torch.cat([clip[-1], newline])]

    def expand(self, frames: Frames, counts: Sequence[int]) -> list[str]:
        return [self.placeholder_token * sum(counts)]

    @property
    def num_prefix_tokens(self) -> int:
        return int(self.model.config.vision_feature_select_strategy == "default")

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """The hidden states that the projector reads, (R, P + N, D)."""
        states = self.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        layer = self.model.config.vision_feature_layer
        return states[layer] if isinstance(layer, int) else torch.cat([states[index] for index in layer], -1)

    def patch_grid(self, pixels: Tensor) -> tuple[int, int]:
        vision = self.model.config.vision_config
        return patch_grid(pixels, vision.image_size, vision.patch_size)


def embeddings_of(tower: nn.Module) -> Any:
    """The module of a CLIP-like tower that makes embeddings of patches."""
    return next(module for name, module in tower.named_modules() if name.split(".")[-1] == "embeddings")
