"""What BLIP-2 and its kin share: a Q-Former makes as many tokens of every frame, however many patches it reads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from salcap.captioners.family import ClipBatch
from salcap.captioners.multimodal import ClipFeatures, MultimodalCaptioner
from salcap.captioners.preprocessing import patch_grid
from salcap.captioners.prompts import check_text
from salcap.captioners.visual_tokens import ClipTokens, cross_attention_bias, encode_pruned
from salcap.frames import Frames


class QFormerCaptioner(MultimodalCaptioner):
    """Base: implement `query`. Frames are encoded one by one, their tokens laid end to end for the language model.

    "prune" drops patches before the vision encoder, "scale" fades its output, "bias" adds to the scores of the
    Q-Former's cross-attention. None changes how many tokens the language model reads.
    """

    fixed_tokens = True

    @abstractmethod
    def query(self, tokens: Tensor, prompt: str) -> Tensor:
        """What the Q-Former makes of patches (R, n, D): (R, queries, D') for the language model."""

    @property
    def generator(self) -> Any:
        return self.model.language_model

    def adds_bias(self) -> bool:
        return self.model.qformer.config._attn_implementation in ("eager", "sdpa")

    def look(self, batch: ClipBatch, prompt: str) -> tuple[list[ClipTokens], list[ClipFeatures]]:
        vision = self.model.vision_model.config
        plans = self.plan(batch, patch_grid(batch.clip_pixels[0], vision.image_size, vision.patch_size), 1)
        rows = self._encode(batch, plans)
        biases = None
        if "bias" in batch.weighting.modes:
            biases = [row for plan in plans for row in plan.bias().split(plan.counts)]
        features: dict[int, Tensor] = {}
        for length in sorted({len(row) for row in rows}):  # frames with equally many patches go together
            indices = [index for index, row in enumerate(rows) if len(row) == length]
            with self._biased(None if biases is None else torch.stack([biases[index] for index in indices])):
                made = self.query(torch.stack([rows[index] for index in indices]), prompt)
            features.update(zip(indices, made, strict=True))
        frames = iter(features[index] for index in range(len(rows)))
        return plans, [[next(frames) for _ in plan.counts] for plan in plans]

    def _encode(self, batch: ClipBatch, plans: Sequence[ClipTokens]) -> list[Tensor]:
        """For each frame of all clips its patches (n, D) as pruned and scaled."""
        pixels = torch.cat(list(batch.clip_pixels))
        if any(plan.prunes for plan in plans):
            places = [(plan, frame) for plan in plans for frame in range(len(plan.counts))]
            prunes = [partial(plan.prune, frame) for plan, frame in places]
            lengths = [plan.counts[frame] for plan, frame in places]
            rows = encode_pruned(self._encode_pixels, self.model.vision_model.embeddings, pixels, prunes, lengths)
        else:
            rows = list(self._encode_pixels(pixels))
        clips = torch.cat(rows).split([plan.num_tokens for plan in plans])
        return [row for plan, clip in zip(plans, clips, strict=True) for row in plan.scale(clip).split(plan.counts)]

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        return self.model.vision_model(pixel_values=pixels).last_hidden_state

    def _biased(self, bias: Tensor | None) -> ExitStack:
        """Hooks on the Q-Former that are removed on leaving a ``with`` block."""
        hooks = ExitStack()
        if bias is not None and bool(bias.any()):
            for layer in self.model.qformer.encoder.layer:
                if layer.has_cross_attention:
                    hook = cross_attention_bias(bias)
                    hooks.enter_context(layer.crossattention.register_forward_pre_hook(hook, with_kwargs=True))
        return hooks

    def scale(self, plans: Sequence[ClipTokens], clips: list[ClipFeatures]) -> list[ClipFeatures]:
        return clips  # done before the Q-Former

    def add_bias(self, *_: Any) -> None:
        """Done in the Q-Former."""

    def check_prompt(self, clips: Sequence[Frames], prompt: Any) -> None:
        check_text(prompt, self.name)  # there is no chat

    def expand(self, frames: Frames, counts: Sequence[int]) -> list[str]:
        raise NotImplementedError("no chat: see prompt_ids")

    def language_inputs(
        self,
        batch: ClipBatch,
        plans: Sequence[ClipTokens],
        clips: list[ClipFeatures],
        inputs: dict[str, Tensor],
        prompt: str,
    ) -> dict[str, Any]:
        made = super().language_inputs(batch, plans, clips, inputs, prompt)
        if self.generator.config.is_encoder_decoder:
            del made["input_ids"]
        return made
