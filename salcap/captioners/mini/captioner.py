"""salcap-mini behind the captioner contract."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from salcap.captioners.family import ClipBatch, clip_seed
from salcap.captioners.mini import modeling  # registers the encoder with transformers
from salcap.captioners.vision_encoder_decoder import VisionEncoderDecoderCaptioner
from salcap.captioners.visual_tokens import stack_bias


class MiniCaptioner(VisionEncoderDecoderCaptioner):
    """`SalcapEncoder` with a text decoder: the encoder itself scales and prunes, before its layers."""

    def __init__(self, model: Any, processor: Any, *, name: str | None = None, revision: str | None = None) -> None:
        super().__init__(model, processor, name=name, revision=revision)
        self.modes = frozenset({"none", "scale", "bias", "prune", "zoom"})
        self.early_pruning = True

    @property
    def saliency_config(self) -> Any:
        return self.model.config.encoder

    def encode(self, batch: ClipBatch) -> tuple[Tensor, Tensor | None]:
        tokens = torch.cat([self._encode_equal(part) for part in _equal_maps(batch)])
        if "bias" not in batch.weighting.modes:
            return tokens, None
        side = self.model.encoder.grid
        return tokens, stack_bias(self.plan(batch, (side, side), num_prefix_tokens=0))

    def _encode_equal(self, batch: ClipBatch) -> Tensor:
        weighting = batch.weighting
        options = modeling.encoder_options(weighting)
        maps = None if options["mode"] == "none" else torch.stack(list(batch.log_densities or []))
        seconds = torch.stack([frames.pts_seconds for frames in batch.clips])
        seeds = torch.tensor([clip_seed(frames, weighting) for frames in batch.clips])
        return self.model.encoder(
            pixel_values=batch.pixels,
            pts_seconds=seconds.to(self.model.device, torch.float32),
            log_density=maps,
            **{**options, "strength": weighting.strength * batch.gain, "seed": seeds},
        ).last_hidden_state


def _equal_maps(batch: ClipBatch) -> list[ClipBatch]:
    """The batch, or its clips one by one where their maps differ in size."""
    if batch.log_densities is None or len({maps.shape for maps in batch.log_densities}) == 1:
        return [batch]
    return [
        replace(batch, clips=[frames], clip_pixels=[pixels], log_densities=[maps])
        for frames, pixels, maps in zip(batch.clips, batch.clip_pixels, batch.log_densities, strict=True)
    ]
