"""Early pruning where the projector makes one token of a square of patches: the squares stay whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from salcap.captioners.visual_tokens import ClipTokens, encode_pruned


def to_groups(patches: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Patches (..., H * W, D) in raster order to groups (..., H/side * W/side, side * side * D), both in raster order.

    The patches of a group lie one after another, in raster order too.

    Args:
        grid: (H/side, W/side), rows and columns of groups.
    """
    rows, columns = grid
    patches = patches.unflatten(-2, (rows, side, columns, side)).transpose(-4, -3)
    return patches.flatten(-3).flatten(-3, -2)


def from_groups(groups: Tensor, side: int) -> Tensor:
    """Groups (..., K, side * side * D) to their patches (..., K * side * side, D), group after group."""
    return groups.unflatten(-1, (side * side, -1)).flatten(-3, -2)


def encode_grouped(
    encoder: Callable[[Tensor], Tensor],
    patch_embeddings: nn.Module,
    clip_pixels: Sequence[Tensor],
    plans: Sequence[ClipTokens],
    grid: tuple[int, int],
    side: int,
    num_prefix_tokens: int,
) -> list[list[Tensor]]:
    """Run an encoder that sees one frame at a time on the groups that the plans keep.

    Args:
        encoder: pixels (R, 3, h, w) -> tokens (R, P + N, D).
        patch_embeddings: the module whose output (R, P + N, D) is pruned, before the encoder's layers.
        clip_pixels: for each clip (F, 3, h, w).
        plans: for each clip, over the grid of groups, without prefix tokens.
        grid: (gh, gw) groups of side x side patches.
        num_prefix_tokens: P tokens in front of the patches, which stay within the encoder and are cut off behind it.

    Returns:
        For each clip and frame the kept groups (K, side * side * D).
    """
    places = [(plan, frame) for plan in plans for frame in range(len(plan.counts))]

    def prune(place: tuple[ClipTokens, int]) -> Callable[[Tensor], Tensor]:
        plan, frame = place

        def kept(row: Tensor) -> Tensor:
            prefix, patches = row[:num_prefix_tokens], row[num_prefix_tokens:]
            return torch.cat([prefix, from_groups(plan.prune(frame, to_groups(patches, grid, side)), side)])

        return kept

    lengths = [num_prefix_tokens + side * side * plan.counts[frame] for plan, frame in places]
    rows = encode_pruned(encoder, patch_embeddings, torch.cat(list(clip_pixels)), [prune(p) for p in places], lengths)
    groups = iter(row[num_prefix_tokens:].unflatten(0, (-1, side * side)).flatten(1) for row in rows)
    return [[next(groups) for _ in plan.counts] for plan in plans]
