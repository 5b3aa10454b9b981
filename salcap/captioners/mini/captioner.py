"""salcap-mini behind the captioner contract."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutput

from salcap.captioners.family import CaptionerFamily, ClipBatch, Generation, clip_seed
from salcap.captioners.mini import modeling  # noqa: F401  registers the encoder with transformers
from salcap.captioners.visual_tokens import cross_attention_bias, stack_bias
from salcap.config import Weighting


class MiniCaptioner(CaptionerFamily):
    """`SalcapEncoder` with a text decoder: scaling and pruning happen inside the encoder, before its layers."""

    transformers_class = "VisionEncoderDecoderModel"

    def __init__(self, model: Any, processor: Any, *, name: str | None = None, revision: str | None = None) -> None:
        super().__init__(model, processor, name=name, revision=revision)
        tuned = dict(model.config.encoder.saliency)
        self.default_saliency = tuned.pop("backbone")
        self.default_weighting = Weighting(**tuned)

    def generate_batch(self, batch: ClipBatch, generation: dict[str, Any]) -> Generation:
        started = self.now_ms()
        tokens = torch.cat([self._encode(part) for part in _equal_maps(batch)])
        side = self.model.encoder.grid
        bias = stack_bias(self.plan(batch, (side, side), 0)) if "bias" in batch.weighting.modes else None
        encode_ms = self.now_ms() - started
        with ExitStack() as hooks:
            if bias is not None:
                hook = cross_attention_bias(bias)
                hooks.enter_context(self.model.decoder.register_forward_pre_hook(hook, with_kwargs=True))
            output = self.model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=tokens), **generation)
        return Generation(output, tokens.shape[1], encode_ms)

    def _encode(self, batch: ClipBatch) -> torch.Tensor:
        weighting = batch.weighting
        mode = "+".join(mode for mode in weighting.modes if mode != "bias") or "none"  # the bias is the decoder's
        maps = None if batch.log_densities is None or mode == "none" else torch.stack(list(batch.log_densities))
        seconds = torch.stack([frames.pts_seconds for frames in batch.clips])
        seeds = torch.tensor([clip_seed(frames, weighting) for frames in batch.clips])
        return self.model.encoder(
            pixel_values=batch.pixels,
            pts_seconds=seconds.to(self.model.device, torch.float32),
            log_density=maps,
            **{**asdict(weighting), "mode": mode, "seed": seeds},
        ).last_hidden_state


def _equal_maps(batch: ClipBatch) -> list[ClipBatch]:
    """The batch, or its clips one by one where their maps differ in size."""
    if batch.log_densities is None or len({maps.shape for maps in batch.log_densities}) == 1:
        return [batch]
    return [
        replace(batch, clips=[frames], pixels=pixels[None], log_densities=[maps])
        for frames, pixels, maps in zip(batch.clips, batch.pixels, batch.log_densities, strict=True)
    ]
