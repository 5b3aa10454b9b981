"""Qwen3-VL: learned positions, times in the prompt, features of several layers. https://arxiv.org/abs/2511.21631"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from salcap.captioners.family import ClipBatch
from salcap.captioners.multimodal import ClipFeatures
from salcap.captioners.packed_patches import PackedFrames
from salcap.captioners.qwen2_vl import Qwen2VLCaptioner
from salcap.captioners.visual_tokens import ClipTokens
from salcap.frames import Frames


class Qwen3VLFrames(PackedFrames):
    """Frames packed as this family's video processor does it: the limits hold for all frames together."""

    def frame_size(self, num_frames: int, height: int, width: int) -> tuple[int, int]:
        processor: Any = self.image_processor
        factor, least, most = self.factor, *self.pixel_limits
        num_frames = max(num_frames, self.span)  # a single frame stands for a span
        if getattr(processor, "cap_pixels_per_frame", None):
            most = num_frames * max(min(processor.max_video_tokens * factor**2, most // num_frames), int(least * 1.05))
        return video_size(num_frames, height, width, self.span, self.factor, least, most)


def video_size(
    num_frames: int, height: int, width: int, span: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Height and width of a clip's frames in multiples of ``factor``, with limits for the pixels of all frames.

    This is ``smart_resize`` of Qwen3-VL's video processor, whose module cannot be imported without torchvision.

    Raises:
        ValueError: frames more than 200 times as long as wide.
    """
    enlarge = max(factor / height, factor / width)
    if enlarge > 1:
        height, width = int(height * enlarge), int(width * enlarge)
    if max(height, width) / min(height, width) > 200:
        raise ValueError(f"frames may be at most 200 times as long as wide, got {height}x{width}")
    sides = round(height / factor) * factor, round(width / factor) * factor
    pixels = round(num_frames / span) * span * sides[0] * sides[1]
    if pixels > max_pixels:
        shrink = math.sqrt(num_frames * height * width / max_pixels)
        height, width = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
        return height, width
    if pixels < min_pixels:
        grow = math.sqrt(min_pixels / (num_frames * height * width))
        height, width = (math.ceil(side * grow / factor) * factor for side in (height, width))
        return height, width
    return sides


class Qwen3VLCaptioner(Qwen2VLCaptioner):
    """``Qwen3VLForConditionalGeneration``: what befalls a token befalls its features for the language model's first
    layers too. Every frame keeps at least one token, as its time in the prompt stays.
    """

    transformers_class = "Qwen3VLForConditionalGeneration"
    preprocessor = Qwen3VLFrames
    video_defaults: ClassVar[Mapping[str, Any]] = {
        "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 768 * 32 * 32},
        "image_mean": IMAGENET_STANDARD_MEAN,
        "image_std": IMAGENET_STANDARD_STD,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "max_video_tokens": 768,
    }

    def run_tower(self, patches: Tensor, grid_thw: Tensor, **precomputed: Tensor) -> Tensor:
        """Tokens with their features for the language model's layers behind them: (n, D * (1 + layers))."""
        output = self.model.model.visual(patches, grid_thw=grid_thw, **precomputed)
        return torch.cat([output.pooler_output, *output.deepstack_features], -1)

    def encode_pruned(self, batch: ClipBatch, plans: Sequence[ClipTokens], patches: Tensor) -> Tensor:
        visual, places, grid_thw = self.model.model.visual, self.pruned_places(batch, plans), self.grid_thw(batch)
        taps, weights = get_vision_interpolation_indices_and_weights(
            grid_thw,
            visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=self.preprocess.side,
        )

        def prune(_module: nn.Module, _args: Any, embeddings: Tensor) -> Tensor:
            learned = (visual.pos_embed(taps) * weights[..., None]).sum(1)
            return self.prune_patches(batch, plans, embeddings + learned.to(embeddings.dtype))

        # the positions are in what the hook gives: the tower shall add none
        none = torch.zeros(len(places["position_ids"]), 1, device=patches.device)
        with visual.patch_embed.register_forward_hook(prune):
            return self.run_tower(patches, **places, interp_indices=none.long(), interp_weights=none)

    def language_inputs(
        self,
        batch: ClipBatch,
        plans: Sequence[ClipTokens],
        clips: list[ClipFeatures],
        inputs: dict[str, Tensor],
        prompt: str,
    ) -> dict[str, Any]:
        layers = len(self.model.config.vision_config.deepstack_visual_indexes)
        parts = [torch.cat(clip).chunk(1 + layers, -1) for clip in clips]
        tokens: Any
        deepstack: Any
        tokens, *deepstack = ([clip[layer] for clip in parts] for layer in range(1 + layers))
        output = BaseModelOutputWithDeepstackFeatures(pooler_output=tokens, deepstack_features=deepstack)
        places = self.position_ids(batch, plans, inputs, prompt)
        return {**inputs, "mm_encoder_outputs": {"video": output}, "position_ids": places}

    def expand(self, frames: Frames, counts: Sequence[int]) -> list[str]:
        span, times = self.preprocess.span, frames.pts_seconds.tolist()
        times += times[-1:] * (-len(times) % span)
        start = getattr(self.tokenizer, "vision_start_token", "<|vision_start|>")
        end = getattr(self.tokenizer, "vision_end_token", "<|vision_end|>")
        text = ""
        for index, count in enumerate(counts):
            seconds = (times[index * span] + times[index * span + span - 1]) / 2
            text += f"<{seconds:.1f} seconds>{start}{self.placeholder_token * count}{end}"
        return [text]
