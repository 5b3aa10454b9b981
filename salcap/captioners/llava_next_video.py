"""LLaVA-NeXT-Video: CLIP, average pooling, a projector. https://llava-vl.github.io/blog/2024-04-30-llava-next-video"""

from __future__ import annotations

import torch

from salcap.captioners.family import ClipBatch
from salcap.captioners.llava_onevision import LlavaOnevisionCaptioner, embeddings_of
from salcap.captioners.multimodal import ClipFeatures, split_clips
from salcap.captioners.pooled_patches import encode_pooled
from salcap.captioners.visual_tokens import ClipTokens


class LlavaNextVideoCaptioner(LlavaOnevisionCaptioner):
    """``LlavaNextVideoForConditionalGeneration``: LLaVA-OneVision's recipe with the pooling before the projector and
    without newline. Raises a ValueError for a pooling that is not the average, which no released checkpoint has.
    """

    transformers_class = "LlavaNextVideoForConditionalGeneration"

    def look(self, batch: ClipBatch, prompt: str) -> tuple[list[ClipTokens], list[ClipFeatures]]:
        model, config = self.model.model, self.model.config
        if config.spatial_pool_mode != "average":
            raise ValueError(f"{self.name} pools by {config.spatial_pool_mode!r}: only 'average' is supported")
        rows, columns = self.patch_grid(batch.clip_pixels[0])
        stride = config.spatial_pool_stride
        plans = self.plan(batch, (rows // stride, columns // stride), num_prefix_tokens=0)
        if any(plan.prunes for plan in plans):
            identity = torch.eye(rows * columns, device=self.model.device)[None]
            clips = encode_pooled(
                self.encode_pixels,
                embeddings_of(model.vision_tower),
                batch.clip_pixels,
                plans,
                model.vision_resampler(identity)[0],
                self.num_prefix_tokens,
            )
            return plans, [[model.multi_modal_projector(frame) for frame in clip] for clip in clips]
        pixels = torch.cat(list(batch.clip_pixels))
        pooled = model.vision_resampler(self.encode_pixels(pixels)[:, self.num_prefix_tokens :])
        return plans, split_clips(model.multi_modal_projector(pooled), batch)

    def finish(self, batch: ClipBatch, index: int, plan: ClipTokens, clip: ClipFeatures) -> ClipFeatures:
        return clip
