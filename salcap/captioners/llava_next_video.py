"""LLaVA-NeXT-Video: CLIP, average pooling, a projector. https://llava-vl.github.io/blog/2024-04-30-llava-next-video"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from salcap.captioners.family import ClipBatch
from salcap.captioners.llava_onevision import LlavaOnevisionCaptioner
from salcap.captioners.multimodal import ClipFeatures
from salcap.captioners.visual_tokens import ClipTokens


class LlavaNextVideoCaptioner(LlavaOnevisionCaptioner):
    """``LlavaNextVideoForConditionalGeneration``: LLaVA-OneVision's recipe with the pooling before the projector and
    without newline.

    Raises:
        ValueError: a model that pools otherwise than by the average; no released one does.
    """

    transformers_class = "LlavaNextVideoForConditionalGeneration"

    def __init__(self, model: Any, processor: Any, *, name: str | None = None, revision: str | None = None) -> None:
        super().__init__(model, processor, name=name, revision=revision)
        if model.config.spatial_pool_mode != "average":
            raise ValueError(f"{self.name} pools by {model.config.spatial_pool_mode!r}: only 'average' is supported")

    def token_grid(self, rows: int, columns: int) -> tuple[int, int]:
        stride = self.model.config.spatial_pool_stride
        return rows // stride, columns // stride

    def pool(self, patches: Tensor) -> Tensor:
        return self.model.model.vision_resampler(patches)

    def before_pooling(self, states: Tensor) -> Tensor:
        return states

    def after_pooling(self, pooled: Tensor) -> Tensor:
        return self.model.model.multi_modal_projector(pooled)

    def finish(self, batch: ClipBatch, index: int, plan: ClipTokens, clip: ClipFeatures) -> ClipFeatures:
        return clip
