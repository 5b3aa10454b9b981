"""VisionEncoderDecoderModel: any vision transformer with any text decoder that has cross-attention."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from salcap.captioners.family import CaptionerFamily, ClipBatch, Generation
from salcap.captioners.preprocessing import pair, patch_grid
from salcap.captioners.visual_tokens import cross_attention_bias, encode_frames, stack_bias


@dataclass(frozen=True)
class EncoderLayout:
    """How an encoder lays out its tokens.

    Attributes:
        num_prefix_tokens: tokens in front of the patches.
        early: whether patches may be dropped after ``encoder.embeddings``; not where layers need the whole grid.
    """

    num_prefix_tokens: int
    early: bool


LAYOUTS = {
    "beit": EncoderLayout(1, early=False),  # relative position biases span the grid
    "deit": EncoderLayout(2, early=True),
    "dinov2": EncoderLayout(1, early=True),
    "donut-swin": EncoderLayout(0, early=False),  # windows span the grid
    "swin": EncoderLayout(0, early=False),
    "vit": EncoderLayout(1, early=True),
}
CLIP_ENCODERS = ("timesformer", "videomae", "vivit", "vjepa2")  # read all frames at once
BIAS_DECODERS = ("bert", "gpt2", "roberta", "trocr")  # known to add a mask of four dimensions to the scores


class VisionEncoderDecoderCaptioner(CaptionerFamily):
    """``VisionEncoderDecoderModel``: frames are encoded one by one, their tokens laid end to end for the decoder.

    "scale" fades the encoder's output; "prune" drops patches before the layers of a plain vision transformer, and
    tokens of the encoder's output elsewhere (`LAYOUTS`); "bias" adds to the cross-attention scores of the decoders in
    `BIAS_DECODERS`. An encoder that is not in `LAYOUTS` has the modes "none" and "zoom" only.
    """

    transformers_class = "VisionEncoderDecoderModel"
    unused_weights = ("encoder.pooler.",)

    def __init__(self, model: Any, processor: Any, *, name: str | None = None, revision: str | None = None) -> None:
        super().__init__(model, processor, name=name, revision=revision)
        encoder, decoder = model.config.encoder.model_type, model.config.decoder
        if encoder in CLIP_ENCODERS:
            raise ValueError(f"{self.name} has a {encoder!r} encoder, which reads all frames at once: not supported")
        self.layout = LAYOUTS.get(encoder)
        modes = {"none", "zoom"} if self.layout is None else {"none", "scale", "prune", "zoom"}
        additive = decoder._attn_implementation in ("eager", "sdpa")
        if self.layout is not None and decoder.model_type in BIAS_DECODERS and additive:
            modes.add("bias")
        self.modes = frozenset(modes)
        self.early_pruning = self.layout is not None and self.layout.early

    def generate_batch(self, batch: ClipBatch, generation: dict[str, Any]) -> Generation:
        started = self.now_ms()
        tokens, bias = self.encode(batch)
        encode_ms = self.now_ms() - started
        with ExitStack() as hooks:
            if bias is not None:
                hook = cross_attention_bias(bias)
                hooks.enter_context(self.model.decoder.register_forward_pre_hook(hook, with_kwargs=True))
            inputs = {"encoder_outputs": BaseModelOutput(last_hidden_state=tokens)}
            output = self.write(batch, inputs, generation)
        return Generation(output, [tokens.shape[1]] * len(tokens), encode_ms)

    def encode(self, batch: ClipBatch) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, T, D) for the decoder, and the bias (B, T) of their attention scores or None."""
        encoder = self.model.encoder
        if self.layout is None:
            tokens = encoder(pixel_values=batch.pixels.flatten(0, 1)).last_hidden_state
            return tokens.unflatten(0, batch.pixels.shape[:2]).flatten(1, 2), None
        plans = self.plan(batch, self._grid(batch.pixels), self.layout.num_prefix_tokens)
        embeddings = encoder.embeddings if self.layout.early else None
        tokens = encode_frames(self._encode_pixels, embeddings, batch.pixels, plans)
        tokens = torch.stack([plan.scale(clip) for plan, clip in zip(plans, tokens, strict=True)])
        return tokens, stack_bias(plans)

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        return self.model.encoder(pixel_values=pixels).last_hidden_state

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        """Rows and columns of the encoder's patches; those of its last stage where it has several."""
        config = self.model.encoder.config
        grid = patch_grid(pixels, config.image_size, config.patch_size)
        if config.model_type in ("swin", "donut-swin"):
            size, patch = pair(config.image_size), pair(config.patch_size)
            stages = len(config.depths) - 1  # each halves the grid, padding odd ones, as does the first cut
            rows, columns = (math.ceil(math.ceil(s / p) / 2**stages) for s, p in zip(size, patch, strict=True))
            return rows, columns
        return grid
