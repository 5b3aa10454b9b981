"""BLIP: a vision transformer whose tokens the text decoder reads by cross-attention. https://arxiv.org/abs/2201.12086"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from salcap.captioners.family import CaptionerFamily, ClipBatch, Generation
from salcap.captioners.preprocessing import patch_grid
from salcap.captioners.visual_tokens import cross_attention_bias, encode_frames, stack_bias


class BlipCaptioner(CaptionerFamily):
    """``BlipForConditionalGeneration``: frames are encoded one by one, their tokens laid end to end for the decoder.

    "prune" drops patches before the vision encoder, "scale" fades its output, "bias" adds to the cross-attention
    scores. ``generate`` takes one more keyword, ``prompt``: text that the captions continue.
    """

    transformers_class = "BlipForConditionalGeneration"
    modes = CaptionerFamily.modes | {"zoom"}
    default_prompt = ""

    def generate_batch(self, batch: ClipBatch, generation: dict[str, Any]) -> Generation:
        vision = self.model.vision_model
        started = self.now_ms()
        grid = patch_grid(batch.pixels, vision.config.image_size, vision.config.patch_size)
        plans = self.plan(batch, grid, num_prefix_tokens=1)
        tokens = encode_frames(
            lambda pixels: vision(pixel_values=pixels).last_hidden_state, vision.embeddings, batch.pixels, plans
        )
        tokens = torch.stack([plan.scale(clip) for plan, clip in zip(plans, tokens, strict=True)])
        encode_ms = self.now_ms() - started
        output = self._decode(batch, tokens, stack_bias(plans), **generation)
        return Generation(output, [tokens.shape[1]] * len(plans), encode_ms)

    @property
    def generator(self) -> Any:
        return self.model.text_decoder

    def eos_token_ids(self, generation: dict[str, Any]) -> list[int]:
        return [self.model.config.text_config.sep_token_id]

    def _decode(
        self, batch: ClipBatch, tokens: Tensor, bias: Tensor | None, prompt: str | None = None, **generation: Any
    ) -> Any:
        """The second half of ``BlipForConditionalGeneration.generate``, which takes pixels of one frame only."""
        text, decoder = self.model.config.text_config, self.model.text_decoder
        prompt = self.default_prompt if prompt is None else prompt
        ids = [text.bos_token_id, *(self.tokenizer(prompt).input_ids[1:-1] if prompt else [])]
        with ExitStack() as hooks:
            if bias is not None:  # BLIP drops encoder_attention_mask on the way: hand it to the attention itself
                for layer in decoder.bert.encoder.layer:
                    attention = layer.crossattention.self
                    hook = cross_attention_bias(bias)
                    hooks.enter_context(attention.register_forward_pre_hook(hook, with_kwargs=True))
            inputs = {
                "input_ids": torch.tensor([ids] * len(tokens), device=tokens.device),
                "encoder_hidden_states": tokens,
                "encoder_attention_mask": torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device),
            }
            ends = {"eos_token_id": text.sep_token_id, "pad_token_id": text.pad_token_id}
            return self.write(batch, inputs, {**ends, **generation})
