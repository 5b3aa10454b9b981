"""Early pruning where tokens are weighted means of a few patches (or of what a projector makes of them)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from salcap.captioners.visual_tokens import ClipTokens, encode_pruned


class PooledFrame:
    """The patches that one frame's tokens need.

    A kept token needs the patches it is the mean of. A coarse token, a mean of tokens itself, becomes one patch that
    is the mean of all of theirs, and is not pooled again.

    Args:
        pooling: (M, N) weights of each token over the frame's patches, rows sum to 1.
    """

    def __init__(self, plan: ClipTokens, frame: int, pooling: Tensor) -> None:
        weights, kept = plan.prune(frame, pooling), plan.num_kept(frame)
        self.used = weights[:kept].any(0).nonzero()[:, 0]
        self.pooling, self.coarse = weights[:kept][:, self.used], weights[kept:]

    def prune(self, num_prefix_tokens: int, embeddings: Tensor) -> Tensor:
        """(P + N, D) to (P + length, D): prefix, patches that stay as they are, coarse ones."""
        prefix, patches = embeddings[:num_prefix_tokens], embeddings[num_prefix_tokens:]
        return torch.cat([prefix, patches[self.used], self.coarse.to(patches.dtype) @ patches])

    def pool(self, patches: Tensor) -> Tensor:
        """What the encoder made of them, (length, D), to tokens (n, D)."""
        used, coarse = patches[: len(self.used)], patches[len(self.used) :]
        return torch.cat([self.pooling.to(patches.dtype) @ used, coarse])

    @property
    def length(self) -> int:
        """Patches that the encoder sees, coarse ones among them."""
        return len(self.used) + len(self.coarse)


def encode_pooled(
    encoder: Callable[[Tensor], Tensor],
    patch_embeddings: nn.Module,
    clip_pixels: Sequence[Tensor],
    plans: Sequence[ClipTokens],
    pooling: Tensor,
    num_prefix_tokens: int,
) -> list[list[Tensor]]:
    """Run an encoder that sees one frame at a time on the patches that the plans' tokens need.

    Args:
        encoder: pixels (R, 3, h, w) -> what is pooled, (R, P + N, D).
        patch_embeddings: the module whose output (R, P + N, D) is pruned, before the encoder's layers.
        clip_pixels: for each clip (F, 3, h, w).
        plans: for each clip, over the grid of M tokens, without prefix tokens.
        pooling: (M, N), see `PooledFrame`.
        num_prefix_tokens: P tokens in front of the patches, which stay within the encoder and are cut off behind it.

    Returns:
        For each clip and frame its tokens (n, D).
    """
    frames = [[PooledFrame(plan, frame, pooling) for frame in range(len(plan.counts))] for plan in plans]
    flat = [frame for clip in frames for frame in clip]
    prunes = [partial(frame.prune, num_prefix_tokens) for frame in flat]
    lengths = [frame.length for frame in flat]
    rows = iter(encode_pruned(encoder, patch_embeddings, torch.cat(list(clip_pixels)), prunes, lengths))
    return [[frame.pool(next(rows)[num_prefix_tokens:]) for frame in clip] for clip in frames]
