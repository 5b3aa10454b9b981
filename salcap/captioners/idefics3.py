"""Idefics3: SigLIP, pixel shuffle, a language model; frames are images. https://arxiv.org/abs/2408.12637"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from salcap.captioners.family import ClipBatch
from salcap.captioners.multimodal import ClipFeatures, MultimodalCaptioner, split_clips
from salcap.captioners.patch_groups import encode_grouped
from salcap.captioners.preprocessing import FramePreprocessor, patch_grid
from salcap.captioners.visual_tokens import ClipTokens
from salcap.frames import Frames


class UnsplitFrames(FramePreprocessor):
    """Each frame whole, not cut into tiles, as the family's processors treat videos: resized twice, to a square."""

    @property
    def read_options(self) -> dict[str, Any]:
        return {}

    def __call__(self, frames: Frames) -> Tensor:
        images, options = [list(frames.pixels.cpu().numpy())], {"do_image_splitting": False, "size": self.size}
        batch = self.image_processor(images, input_data_format="channels_first", return_tensors="pt", **options)
        return batch["pixel_values"][0]

    @property
    def size(self) -> dict[str, int]:
        """What frames are resized to before they are made square."""
        return self._size("size")

    def seen_box(self, height: int, width: int) -> tuple[float, float, float, float]:
        return 0.0, 0.0, 1.0, 1.0


class Idefics3Captioner(MultimodalCaptioner):
    """``Idefics3ForConditionalGeneration``: "prune" drops groups of patches that the pixel shuffle would make one token
    of, before the vision encoder.
    """

    transformers_class = "Idefics3ForConditionalGeneration"
    placeholder = "image"
    preprocessor = UnsplitFrames

    def look(self, batch: ClipBatch, prompt: str) -> tuple[list[ClipTokens], list[ClipFeatures]]:
        grid, side = self._grid(batch.clip_pixels[0]), self.model.config.scale_factor
        plans = self.plan(batch, grid, num_prefix_tokens=0)
        connector, embeddings = self.model.model.connector, self.model.model.vision_model.embeddings
        if not any(plan.prunes for plan in plans):
            features = connector(self._encode_pixels(torch.cat(list(batch.clip_pixels))))
            return plans, split_clips(features, batch)
        clips = encode_grouped(self._encode_pixels, embeddings, batch.clip_pixels, plans, grid, side, 0)
        return plans, [[connector.modality_projection(groups) for groups in clip] for clip in clips]

    def expand(self, frames: Frames, counts: Sequence[int]) -> list[str]:
        return [self._around_image(count) for count in counts]

    def chat_visuals(self, frames: Frames) -> list[dict[str, str]]:
        return [{"type": "image"}] * len(frames)

    def _around_image(self, count: int) -> str:
        fake = getattr(self.tokenizer, "fake_image_token", "<fake_token_around_image>")
        overview = getattr(self.tokenizer, "global_image_token", "<global-img>")
        return f"{fake}{overview}{self.placeholder_token * count}{fake}"

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        # its forward makes a mask as long as the unpruned frame; frames without border need none
        vision, patch = self.model.model.vision_model, self.model.config.vision_config.patch_size
        whole = pixels.new_ones((len(pixels), *(s // patch for s in pixels.shape[-2:])), dtype=torch.bool)
        hidden = vision.embeddings(pixel_values=pixels, patch_attention_mask=whole)
        return vision.post_layernorm(vision.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state)

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        config = self.model.config
        rows, columns = patch_grid(pixels, config.vision_config.image_size, config.vision_config.patch_size)
        return rows // config.scale_factor, columns // config.scale_factor
