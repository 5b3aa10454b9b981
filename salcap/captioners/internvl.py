"""InternVL 2.5 to 3.5 in the format of ``transformers``: InternViT, pixel shuffle. https://arxiv.org/abs/2504.10479"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from salcap.captioners.family import ClipBatch
from salcap.captioners.multimodal import ClipFeatures, MultimodalCaptioner, split_clips
from salcap.captioners.patch_groups import encode_grouped
from salcap.captioners.preprocessing import WholeFrames, patch_grid
from salcap.captioners.visual_tokens import ClipTokens
from salcap.frames import Frames


class InternVLCaptioner(MultimodalCaptioner):
    """``InternVLForConditionalGeneration``: "prune" drops groups of patches that the pixel shuffle would make one token
    of, before the vision encoder. Frames go in whole, one tile each.
    """

    transformers_class = "InternVLForConditionalGeneration"
    placeholder = "image"
    preprocessor = WholeFrames

    def look(self, batch: ClipBatch, prompt: str) -> tuple[list[ClipTokens], list[ClipFeatures]]:
        model, grid = self.model.model, self._grid(batch.clip_pixels[0])
        plans = self.plan(batch, grid, num_prefix_tokens=0)
        if not any(plan.prunes for plan in plans):
            pixels = torch.cat(list(batch.clip_pixels))
            features = model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
            return plans, split_clips(features, batch)
        tower = model.vision_tower
        clips = encode_grouped(
            self._encode_pixels, tower.embeddings, batch.clip_pixels, plans, grid, self._side, num_prefix_tokens=1
        )
        return plans, [[model.multi_modal_projector(groups) for groups in clip] for clip in clips]

    def expand(self, frames: Frames, counts: Sequence[int]) -> list[str]:
        start, end = self.tokenizer.start_image_token, self.tokenizer.end_image_token
        places = (f"{start}{self.placeholder_token * count}{end}" for count in counts)
        return ["\n".join(f"Frame{index}: {place}" for index, place in enumerate(places, 1))]

    @property
    def chat_token(self) -> str:
        return self.tokenizer.video_token

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        layer = self.model.config.vision_feature_layer
        output = self.model.model.vision_tower(pixel_values=pixels, output_hidden_states=layer != -1)
        return output.last_hidden_state if layer == -1 else output.hidden_states[layer]

    @property
    def _side(self) -> int:
        return int(1 / self.model.config.downsample_ratio)

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        vision = self.model.config.vision_config
        rows, columns = patch_grid(pixels, vision.image_size, vision.patch_size)
        return rows // self._side, columns // self._side
