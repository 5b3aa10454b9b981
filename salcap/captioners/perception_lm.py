"""PerceptionLM: Perception Encoder (of timm), a projector with average pooling. https://arxiv.org/abs/2504.13180"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import transformers

from salcap.captioners.family import ClipBatch
from salcap.captioners.multimodal import ClipFeatures, MultimodalCaptioner, split_clips
from salcap.captioners.preprocessing import WholeFrames, load_frame_settings
from salcap.captioners.visual_tokens import ClipTokens
from salcap.frames import Frames


class PerceptionLMCaptioner(MultimodalCaptioner):
    """``PerceptionLMForConditionalGeneration``: frames as a video, whole. "prune" drops tokens behind the projector:
    the tower is timm's, with rotary positions over the whole grid.
    """

    transformers_class = "PerceptionLMForConditionalGeneration"
    early_pruning = False
    preprocessor = WholeFrames

    @classmethod
    def load_parts(cls, path: str, **source: Any) -> tuple[Any, Any]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **source)
        return load_frame_settings(path, revision=source["revision"]), tokenizer

    def look(self, batch: ClipBatch, prompt: str) -> tuple[list[ClipTokens], list[ClipFeatures]]:
        pixels = torch.cat(list(batch.clip_pixels))
        features = self.model.model.get_image_features(pixel_values=pixels[None], return_dict=True).pooler_output
        side = math.isqrt(features.shape[1])  # the family's tiles are square
        plans = self.plan(batch, (side, side), num_prefix_tokens=0)
        pairs = zip(plans, split_clips(features, batch), strict=True)
        return plans, [[plan.prune(frame, tokens) for frame, tokens in enumerate(clip)] for plan, clip in pairs]

    def expand(self, frames: Frames, counts: Sequence[int]) -> list[str]:
        return [self.placeholder_token * sum(counts)]
