"""What one clip's saliency does to its visual tokens, and the vision encoder run with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from salcap.config import Weighting
from salcap.weighting import attention_bias, scale_patches, select_patches


class ClipTokens:
    """The visual tokens of one clip: how many each frame keeps, and what is done to them.

    Made for one clip at a time, so that a clip's tokens do not depend on the batch it is in.

    Args:
        num_frames: F.
        grid: (gh, gw) patches of a frame, N in all.
        num_prefix_tokens: P tokens in front of each frame's patches; they always stay as they are.
        saliency: (F, N) from `relative_saliency`; None where the mode is "none".
        seed: the clip's own, of the random policies.
        num_extra_tokens: of the clip as a whole, which count against its budget.
        gain: what the weighting's strength is multiplied by.

    Attributes:
        counts: tokens of each frame, its prefix tokens among them.
        prunes: whether any patch is dropped or merged.
    """

    def __init__(
        self,
        weighting: Weighting,
        num_frames: int,
        grid: tuple[int, int],
        num_prefix_tokens: int,
        saliency: Tensor | None = None,
        seed: int = 0,
        num_extra_tokens: int = 0,
        gain: float | Tensor = 1.0,
    ) -> None:
        self.strength = weighting.strength * gain
        self.weighting, self.num_prefix_tokens = weighting, num_prefix_tokens
        self._choices: list[tuple[Tensor, Tensor | None]] = []
        self._saliency: tuple[Tensor, ...] = () if saliency is None else saliency.unbind()
        self._full_count = num_prefix_tokens + grid[0] * grid[1]
        self.counts = (self._full_count,) * num_frames
        if saliency is not None and "prune" in weighting.modes:
            self._choose(saliency, grid, seed, num_extra_tokens)

    def _choose(self, saliency: Tensor, grid: tuple[int, int], seed: int, num_extra_tokens: int) -> None:
        weighting = self.weighting
        selection = select_patches(
            saliency[None],
            grid,
            weighting.keep_ratio,
            policy=weighting.policy,
            scope=weighting.scope,
            seed=seed,
            max_visual_tokens=weighting.max_visual_tokens,
            min_keep=weighting.min_keep,
            num_prefix_tokens=self.num_prefix_tokens,
            num_extra_tokens=num_extra_tokens,
        )
        if selection.is_identity:
            return
        keep, merges = selection.keep_indices[0], selection.frame_merge
        for frame in range(len(saliency)):
            kept = keep[keep // saliency.shape[1] == frame] - frame * saliency.shape[1]
            merge = None if merges is None else merges[0, frame][merges[0, frame].any(-1)]
            self._choices.append((kept, merge))
        self._saliency = tuple(self._take(frame, row[:, None])[:, 0] for frame, row in enumerate(saliency))
        self.counts = tuple(self.num_prefix_tokens + len(row) for row in self._saliency)

    @property
    def prunes(self) -> bool:
        """Whether any token is dropped or merged."""
        return bool(self._choices)

    @property
    def num_tokens(self) -> int:
        """Tokens of the clip, over all frames."""
        return sum(self.counts)

    def num_kept(self, frame: int) -> int:
        """How many of a frame's tokens are patches as they are; the coarse tokens come behind them."""
        return len(self._choices[frame][0]) if self.prunes else self._full_count - self.num_prefix_tokens

    def prune(self, frame: int, features: Tensor) -> Tensor:
        """Features (..., P + N, D) of one frame to (..., counts[frame], D).

        Raises:
            ValueError: features of another length, so that patches would be mistaken for others.
        """
        if features.shape[-2] != self._full_count:
            raise ValueError(f"expected {self._full_count} tokens a frame, the encoder made {features.shape[-2]}")
        if not self.prunes:
            return features
        prefix, patches = features[..., : self.num_prefix_tokens, :], features[..., self.num_prefix_tokens :, :]
        return torch.cat([prefix, self._take(frame, patches)], -2)

    def scale(self, tokens: Tensor) -> Tensor:
        """Tokens (..., num_tokens, D) of all frames, with each frame's patches faded: see `scale_patches`."""
        if "scale" not in self.weighting.modes:
            return tokens
        scaled = [
            scale_patches(part, row.expand(*part.shape[:-2], -1), self.strength, self.num_prefix_tokens)
            for part, row in zip(tokens.split(self.counts, -2), self._saliency, strict=True)
        ]
        return torch.cat(scaled, -2)

    def bias(self) -> Tensor:
        """What to add to the attention scores of the tokens as keys, (num_tokens,) float32; see `attention_bias`."""
        rows = [attention_bias(row, self.strength, self.num_prefix_tokens) for row in self._saliency]
        return torch.cat(rows)

    def _take(self, frame: int, patches: Tensor) -> Tensor:
        keep, merge = self._choices[frame]
        kept = patches.index_select(-2, keep)
        return kept if merge is None else torch.cat([kept, merge.to(patches.dtype) @ patches], -2)


def encode_frames(
    encoder: Callable[[Tensor], Tensor], patch_embeddings: nn.Module | None, pixels: Tensor, plans: Sequence[ClipTokens]
) -> Tensor:
    """Run an encoder that sees one frame at a time, pruned where the plans prune.

    Frames that keep equally many tokens are encoded together: all at once but for scope "clip".

    Args:
        encoder: pixels (R, 3, h, w) -> tokens (R, P + N, D).
        patch_embeddings: the module whose output (R, P + N, D) is pruned, before the encoder's layers; None prunes
            the encoder's output.
        pixels: (B, F, 3, h, w).

    Returns:
        (B, T, D), frames one after another.
    """
    frames = [(plan, frame) for plan in plans for frame in range(pixels.shape[1])]
    pixels = pixels.flatten(0, 1)
    if not any(plan.prunes for plan in plans):
        return encoder(pixels).unflatten(0, (len(plans), -1)).flatten(1, 2)
    if patch_embeddings is None:
        tokens = [plan.prune(frame, row) for (plan, frame), row in zip(frames, encoder(pixels), strict=True)]
    else:
        prunes = [partial(plan.prune, frame) for plan, frame in frames]
        counts = [plan.counts[frame] for plan, frame in frames]
        tokens = encode_pruned(encoder, patch_embeddings, pixels, prunes, counts)
    num_frames = len(frames) // len(plans)
    return torch.stack([torch.cat(tokens[i : i + num_frames]) for i in range(0, len(frames), num_frames)])


def encode_pruned(
    encoder: Callable[[Tensor], Tensor],
    patch_embeddings: nn.Module,
    pixels: Tensor,
    prunes: Sequence[Callable[[Tensor], Tensor]],
    lengths: Sequence[int],
) -> list[Tensor]:
    """Run an encoder with fewer patches; frames that keep equally many run together.

    Args:
        encoder: pixels (R, 3, h, w) -> one tensor of R rows.
        patch_embeddings: the module whose output (R, P + N, D) is pruned, before the encoder's layers.
        pixels: (R, 3, h, w).
        prunes: for each row what makes (length, D) of its (P + N, D).
        lengths: of each row.

    Returns:
        The rows of the encoder's output, in order.
    """
    rows: dict[int, Tensor] = {}
    for length in sorted(set(lengths)):
        indices = [i for i, other in enumerate(lengths) if other == length]

        def prune(_module: nn.Module, _args: Any, output: Tensor, indices: list[int] = indices) -> Tensor:
            return torch.stack([prunes[i](row) for i, row in zip(indices, output, strict=True)])

        with patch_embeddings.register_forward_hook(prune):
            rows.update(zip(indices, encoder(pixels[indices]), strict=True))
    return [rows[i] for i in range(len(lengths))]


def stack_bias(plans: Sequence[ClipTokens]) -> Tensor | None:
    """(B, T) float32 to add to the scores of visual keys; None where there is nothing to add."""
    if "bias" not in plans[0].weighting.modes:
        return None
    bias = torch.stack([plan.bias() for plan in plans])
    # an attention kernel may round differently with a mask of zeros than without: neutral must stay exact
    return bias if bool(bias.any()) else None


def cross_attention_bias(bias: Tensor) -> Callable[..., Any]:
    """A forward pre-hook (with keywords) that adds ``bias`` (B, T) to a decoder's cross-attention scores.

    ``transformers`` hands a mask of four dimensions on as it is, to be added to the scores; beams are neighbours.
    """

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        states = kwargs["encoder_hidden_states"]
        rows = bias.repeat_interleave(len(states) // len(bias), 0)[:, None, None].to(states.dtype)
        return args, {**kwargs, "encoder_attention_mask": rows}

    return hook
