"""GIT: frames' tokens in front of the text, in one transformer. https://arxiv.org/abs/2205.14100"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput

from salcap.captioners.family import CaptionerFamily, ClipBatch, Generation
from salcap.captioners.preprocessing import patch_grid
from salcap.captioners.visual_tokens import ClipTokens, encode_frames, stack_bias
from salcap.config import Weighting
from salcap.weighting.budgets import clip_budget


class GitCaptioner(CaptionerFamily):
    """``GitForCausalLM``: "prune" drops patches before the vision encoder, "scale" fades them after the projection and
    its LayerNorm (which would undo it earlier), "bias" adds to the scores of the visual keys in every text layer.

    An image model takes one frame (more after `make_room`), a video model as many as it has time embeddings: half as
    many with "zoom", whose two views of a frame take one each; an image model has no "zoom". GIT's ``generate`` encodes
    frame after frame, and all of them again for each beam; pruned frames are encoded before it, together and once.
    """

    transformers_class = "GitForCausalLM"

    def __init__(self, model: Any, processor: Any, *, name: str | None = None, revision: str | None = None) -> None:
        super().__init__(model, processor, name=name, revision=revision)
        self.max_frames = model.config.num_image_with_embedding or 1
        if self.max_frames > 1:
            self.modes |= {"zoom"}

    def make_room(self, num_frames: int) -> None:
        if num_frames == 1 or self.model.config.num_image_with_embedding:
            return
        width, git = self.model.config.vision_config.hidden_size, self.model.git
        embeddings = [nn.Parameter(torch.zeros(1, 1, width, device=self.model.device)) for _ in range(num_frames)]
        git.img_temporal_embedding = nn.ParameterList(embeddings)  # zeros, as in a new video model
        self.model.config.num_image_with_embedding = self.max_frames = num_frames
        self.modes |= {"zoom"}

    def batch_key(self, index: int, pixels: Tensor, weighting: Weighting) -> Hashable:
        if "prune" not in weighting.modes or weighting.scope == "frame":
            return pixels.shape
        # frames of one index are encoded together: clips whose frames keep unequal numbers go one by one
        vision, num_frames = self.model.config.vision_config, len(pixels)
        num_patches = math.prod(patch_grid(pixels, vision.image_size, vision.patch_size))
        limits = (weighting.keep_ratio, None, weighting.max_visual_tokens, weighting.min_keep)
        kept = clip_budget(num_frames, num_patches, *limits, num_prefix_tokens=1)
        return index if kept < num_frames * num_patches else pixels.shape

    def generate_batch(self, batch: ClipBatch, generation: dict[str, Any]) -> Generation:
        started = self.now_ms()
        git, vision = self.model.git, self.model.config.vision_config
        pixels = batch.pixels if self.model.config.num_image_with_embedding else batch.pixels[:, 0]
        plans = self.plan(batch, patch_grid(pixels, vision.image_size, vision.patch_size), num_prefix_tokens=1)
        num_calls = pixels.shape[1] if pixels.ndim == 5 else 1  # of the encoder in a forward: frame after frame
        with ExitStack() as hooks:
            # each is removed on leaving, also when generate raises
            if plans[0].prunes:
                hooks.enter_context(_encoded_before(git, batch.pixels, plans))
            times = [-started, self.now_ms()]
            encoder = git.image_encoder
            hooks.enter_context(encoder.register_forward_pre_hook(lambda *_: times.append(-self.now_ms())))
            hooks.enter_context(encoder.register_forward_hook(lambda *_: times.append(self.now_ms())))
            if "scale" in batch.weighting.modes:
                hooks.enter_context(git.visual_projection.register_forward_hook(_scale_hook(plans)))
            if (bias := stack_bias(plans)) is not None:
                hooks.enter_context(git.encoder.register_forward_pre_hook(_bias_hook(bias), with_kwargs=True))
            output = self.write(batch, {"pixel_values": pixels}, generation)
        return Generation(output, [plan.num_tokens for plan in plans], sum(times[: 2 + 2 * num_calls]))


def _by_clip(plans: list[ClipTokens], rows: Tensor) -> zip[tuple[ClipTokens, Tensor]]:
    """Each clip's plan with its rows: its beams are neighbours."""
    return zip(plans, rows.chunk(len(plans)), strict=True)


@contextmanager
def _encoded_before(git: Any, pixels: Tensor, plans: list[ClipTokens]) -> Iterator[None]:
    """Encode the frames (B, F, 3, h, w) pruned, and let the model find them where it would encode them itself."""
    encoder = git.image_encoder

    def encode(rows: Tensor) -> Tensor:
        return encoder(rows).last_hidden_state

    tokens = encode_frames(encode, encoder.vision_model.embeddings, pixels, plans)
    git.image_encoder = _EncodedFrames(tokens.split(plans[0].counts, 1))
    try:
        yield
    finally:
        git.image_encoder = encoder


class _EncodedFrames(nn.Module):
    """In the place of an encoder that is called for one frame after another: each frame's tokens (B, n, D)."""

    def __init__(self, frames: Sequence[Tensor]) -> None:
        super().__init__()
        self._frames = cycle(frames)

    def forward(self, pixels: Tensor, **_: Any) -> BaseModelOutput:
        tokens = next(self._frames)
        # beams are neighbours; a copy, to which the model adds the frame's time
        return BaseModelOutput(last_hidden_state=tokens.repeat_interleave(len(pixels) // len(tokens), 0))


def _scale_hook(plans: list[ClipTokens]) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return torch.cat([plan.scale(rows) for plan, rows in _by_clip(plans, output)])

    return hook


def _bias_hook(bias: Tensor) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs["attention_mask"]
        if mask is None or not mask.is_floating_point():
            raise ValueError("mode 'bias' needs GIT's eager attention, whose mask is added to the scores")
        rows = bias.repeat_interleave(len(args[0]) // len(bias), 0)[:, None, None].to(mask.dtype)
        # visual keys come first, in the prefill as in the cache
        return args, {**kwargs, "attention_mask": mask + F.pad(rows, (0, mask.shape[-1] - bias.shape[1]))}

    return hook
