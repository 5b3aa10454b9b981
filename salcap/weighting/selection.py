"""Prune: choose the visual tokens of a clip by its saliency, and apply the choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from salcap.seeding import combine_seeds
from salcap.weighting.budgets import check_scope, clip_budget, share_budget
from salcap.weighting.policies import POLICIES, Choice, Policy, Request
from salcap.weighting.pooling import Grid, check_grid
from salcap.weighting.scaling import check_saliency

_record: ContextVar[list[tuple[Grid, PatchSelection]] | None] = ContextVar("record", default=None)


@dataclass(frozen=True, eq=False)
class PatchSelection:
    """The tokens that stand for the patches of each clip, frame by frame.

    A frame's tokens are its kept patches in raster order, then its coarse tokens. Apply it to anything that has one
    row for each patch: features, position embeddings, patch centres.

    Attributes:
        keep_indices: (B, K) int64, ascending, the kept patches among the F * N of the clip.
        counts: (B, F) int64, tokens of each frame.
        frame_of_token: (B, T) int64.
        num_patches: F * N.
        frame_merge: (B, F, M, N) float32 or None, see `Choice`.
        order: (B, T) int64 or None, where each token is found in kept patches followed by all rows of ``frame_merge``.
    """

    keep_indices: Tensor
    counts: Tensor
    frame_of_token: Tensor
    num_patches: int
    frame_merge: Tensor | None = None
    order: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """T, tokens of a clip."""
        return self.frame_of_token.shape[1]

    @property
    def is_identity(self) -> bool:
        """Whether all patches are kept."""
        return self.keep_indices.shape[1] == self.num_patches

    @property
    def merge(self) -> Tensor | None:
        """(B, T - K, F * N) float32: weights of each coarse token, in token order, over all patches of the clip."""
        if self.frame_merge is None:
            return None
        blocks = torch.stack([torch.block_diag(*clip) for clip in self.frame_merge])
        return blocks[self.frame_merge.any(-1).flatten(1)].reshape(len(blocks), -1, self.num_patches)

    def apply(self, patch_features: Tensor) -> Tensor:
        """(B, F * N, D) to (B, T, D); the very same tensor where all patches are kept. Gradients flow."""
        if patch_features.ndim != 3 or patch_features.shape[:2] != (len(self.keep_indices), self.num_patches):
            raise ValueError(
                f"patch_features must be ({len(self.keep_indices)}, {self.num_patches}, D),"
                f" got {tuple(patch_features.shape)}"
            )
        if self.is_identity:
            return patch_features
        tokens = _take(patch_features, self.keep_indices)
        if self.frame_merge is None or self.order is None:
            return tokens
        frames = patch_features.unflatten(1, (self.frame_merge.shape[1], -1))
        coarse = self.frame_merge.to(patch_features.dtype) @ frames
        return _take(torch.cat([tokens, coarse.flatten(1, 2)], 1), self.order)


def select_patches(
    saliency: Tensor,
    grid: Grid,
    keep_ratio: float | None = None,
    num_keep: int | None = None,
    policy: str = "foveate",
    scope: str = "frame",
    seed: int | Tensor = 0,
    *,
    max_visual_tokens: int | None = None,
    min_keep: int = 1,
    num_prefix_tokens: int = 0,
    num_extra_tokens: int = 0,
) -> PatchSelection:
    """Choose the tokens of each clip.

    Args:
        saliency: (B, F, N) from `relative_saliency`.
        grid: (gh, gw) with gh * gw = N.
        keep_ratio, num_keep, max_visual_tokens, min_keep, num_prefix_tokens, num_extra_tokens: see `clip_budget`.
        policy: a key of `salcap.weighting.policies.POLICIES`. Keeping all N is the identity for every one.
        scope: how frames share the budget, see `share_budget`.
        seed: of the draws; an int gives the same draws to all clips of the batch, a (B,) int64 tensor each its own.

    Raises:
        ValueError: an unknown policy or scope, a budget that `clip_budget` refuses, a grid or seed that does not match,
            or saliency that is negative or not finite.
    """
    chosen, (gh, gw) = _check_policy(policy), check_grid(grid)
    check_scope(scope)
    if saliency.ndim != 3 or saliency.shape[-1] != gh * gw:
        raise ValueError(f"saliency must be (B, F, {gh * gw}) for grid {grid}, got {tuple(saliency.shape)}")
    check_saliency(saliency)
    saliency = saliency.detach().float()
    batch, num_frames, num_patches = saliency.shape
    limits = (keep_ratio, num_keep, max_visual_tokens, min_keep, num_prefix_tokens, num_extra_tokens)
    total = clip_budget(num_frames, num_patches, *limits)
    if total == num_frames * num_patches:
        return _recorded(_arrange(Choice(torch.ones_like(saliency, dtype=torch.bool))), (gh, gw))
    seeds = torch.as_tensor(seed, device=saliency.device)
    if seeds.ndim and seeds.shape != (batch,):
        raise ValueError(f"seed must be an int or ({batch},), one for each clip, got {tuple(seeds.shape)}")
    budgets = share_budget(saliency, total, min_keep, scope, chosen.reads_map)
    seeds = combine_seeds(seeds.reshape(-1, 1), torch.arange(num_frames, device=saliency.device))
    request = Request(saliency, budgets, int(budgets[0].sum()), (gh, gw), seeds.expand(batch, num_frames))
    return _recorded(_arrange(chosen.choose(request)), (gh, gw))


@contextmanager
def recorded_selections() -> Iterator[list[tuple[Grid, PatchSelection]]]:
    """What `select_patches` answers meanwhile in this thread, with the grid: what a captioner keeps of its clips."""
    record: list[tuple[Grid, PatchSelection]] = []
    token = _record.set(record)
    try:
        yield record
    finally:
        _record.reset(token)


def prune_patches(
    patch_features: Tensor,
    saliency: Tensor,
    grid: Grid,
    keep_ratio: float | None = None,
    policy: str = "foveate",
    scope: str = "frame",
    num_prefix_tokens: int = 0,
    seed: int | Tensor = 0,
    *,
    max_visual_tokens: int | None = None,
    min_keep: int = 1,
) -> tuple[Tensor, PatchSelection]:
    """Keep the chosen tokens of each clip and all prefix tokens, each frame's in front of its own.

    Args:
        patch_features: (B, F, P + N, D).
        saliency: (B, F, N); the other arguments as for `select_patches`.

    Returns:
        (B, F, P + T / F, D) for scope "frame", (B, F * P + T, D) for "clip"; and the selection, without prefix tokens.

    Raises:
        ValueError: features that do not match the map, or what `select_patches` refuses.
    """
    expected = (*saliency.shape[:2], num_prefix_tokens + saliency.shape[-1])
    if patch_features.ndim != 4 or patch_features.shape[:3] != expected:
        raise ValueError(f"patch_features must be {(*expected, 'D')}, got {tuple(patch_features.shape)}")
    saliency = saliency.to(patch_features.device)
    selection = select_patches(
        saliency,
        grid,
        keep_ratio,
        policy=policy,
        scope=scope,
        seed=seed,
        max_visual_tokens=max_visual_tokens,
        min_keep=min_keep,
        num_prefix_tokens=num_prefix_tokens,
    )
    batch, num_frames, _, width = patch_features.shape
    if selection.is_identity:
        return (patch_features if scope == "frame" else patch_features.flatten(1, 2)), selection
    prefix, patches = patch_features[:, :, :num_prefix_tokens], patch_features[:, :, num_prefix_tokens:]
    tokens = selection.apply(patches.flatten(1, 2))
    if scope == "frame":
        return torch.cat([prefix, tokens.reshape(batch, num_frames, -1, width)], 2), selection
    if num_prefix_tokens:
        frame_of_prefix = torch.arange(num_frames, device=tokens.device).repeat_interleave(num_prefix_tokens)
        frames = torch.cat([frame_of_prefix.expand(batch, -1), selection.frame_of_token], 1)
        tokens = _take(torch.cat([prefix.flatten(1, 2), tokens], 1), frames.argsort(dim=1, stable=True))
    return tokens, selection


def _recorded(selection: PatchSelection, grid: Grid) -> PatchSelection:
    record = _record.get()
    if record is not None:
        record.append((grid, selection))
    return selection


def _arrange(choice: Choice) -> PatchSelection:
    """Lay the tokens out frame by frame."""
    batch, num_frames, num_patches = choice.keep.shape
    kept = choice.keep.flatten(1).nonzero()[:, 1]
    keep_indices = kept.reshape(batch, len(kept) // batch)
    counts = choice.keep.sum(-1)
    frames = keep_indices // num_patches
    order = None
    if choice.merge is not None:
        filled = choice.merge.any(-1)
        counts = counts + filled.sum(-1)
        frame_index = torch.arange(num_frames, device=filled.device)[:, None]
        slots = frame_index.where(filled, num_frames).flatten(1)  # empty slots sort behind the last frame
        frames, order = torch.cat([frames, slots], 1).sort(dim=1, stable=True)
        num_tokens = int(counts[0].sum())
        frames, order = frames[:, :num_tokens], order[:, :num_tokens]
    return PatchSelection(keep_indices, counts, frames, num_frames * num_patches, choice.merge, order)


def _take(tokens: Tensor, indices: Tensor) -> Tensor:
    """(B, L, D) at (B, K) -> (B, K, D); whole rows at once, which gather does not do."""
    start = torch.arange(len(tokens), device=tokens.device)[:, None] * tokens.shape[1]
    return tokens.flatten(0, 1).index_select(0, (indices + start).flatten()).unflatten(0, indices.shape)


def _check_policy(name: str) -> Policy:
    if name not in POLICIES:
        close = difflib.get_close_matches(str(name), POLICIES, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown policy {name!r}, allowed: {', '.join(POLICIES)}{hint}")
    return POLICIES[name]
