"""How many tokens a clip keeps, and how its frames share them."""

from __future__ import annotations

import torch
from torch import Tensor

from salcap.weighting.apportion import apportion

_SCOPES = ("frame", "clip")


def clip_budget(
    num_frames: int,
    num_patches: int,
    keep_ratio: float | None = None,
    num_keep: int | None = None,
    max_visual_tokens: int | None = None,
    min_keep: int = 1,
    num_prefix_tokens: int = 0,
    num_extra_tokens: int = 0,
) -> int:
    """Patch tokens that a clip keeps: the smallest of what the limits leave, at most F * N, which is all.

    Args:
        num_frames, num_patches: F frames of N patches each.
        keep_ratio: share of each frame's patches, in (0, 1].
        num_keep: tokens per frame instead, 1 to N.
        max_visual_tokens: most tokens of the clip, those that always stay among them.
        min_keep: fewest patch tokens of a frame; all of them where N is less. Raises what the first two leave.
        num_prefix_tokens: P tokens of each frame that always stay.
        num_extra_tokens: of the clip as a whole that always stay.

    Raises:
        ValueError: no limit, both of ``keep_ratio`` and ``num_keep``, one out of its range, or a
            ``max_visual_tokens`` without room for ``min_keep``.
    """
    given = (keep_ratio is not None) + (num_keep is not None)
    if given > 1 or (given == 0 and max_visual_tokens is None):
        raise ValueError(
            f"give keep_ratio or num_keep, or max_visual_tokens alone,"
            f" got keep_ratio={keep_ratio} and num_keep={num_keep}"
        )
    if keep_ratio is not None and not 0.0 < keep_ratio <= 1.0:
        raise ValueError(f"keep_ratio must be in (0, 1], got {keep_ratio}")
    if num_keep is not None and not 1 <= num_keep <= num_patches:
        raise ValueError(f"num_keep must be from 1 to {num_patches}, got {num_keep}")
    if min_keep < 1:
        raise ValueError(f"min_keep must be at least 1, got {min_keep}")
    fewest = min(min_keep, num_patches)
    each = (num_keep or num_patches) if keep_ratio is None else round(keep_ratio * num_patches)
    total = num_frames * max(each, fewest)
    if max_visual_tokens is None:
        return total
    always = num_frames * num_prefix_tokens + num_extra_tokens
    least = always + num_frames * fewest
    if max_visual_tokens < least:
        raise ValueError(
            f"max_visual_tokens must be at least {least} for {num_frames} frames of {fewest} patch tokens each"
            f" (min_keep {min_keep}) and {always} tokens that always stay, got {max_visual_tokens}"
        )
    return min(total, max_visual_tokens - always)


def share_budget(saliency: Tensor, total: int, min_keep: int, scope: str, reads_map: bool = True) -> Tensor:
    """Tokens of each frame.

    "frame" gives all the same, rounded down. "clip" gives out ``total`` to the token, in proportion to `frame_mass`
    between ``min_keep`` and N, by the largest remainder, the first frame of equals. A policy that does not read the
    map shares evenly: what is left over goes to the first frames, one token each.

    Args:
        saliency: (B, F, N).
        total: tokens of a clip, from `clip_budget`.

    Returns:
        (B, F) int64, each clip's own whatever the batch.
    """
    batch, num_frames, num_patches = saliency.shape
    if scope == "clip" and reads_map:
        return apportion(frame_mass(saliency), total, min(min_keep, num_patches), num_patches)
    each, left = divmod(total, num_frames)
    first = torch.arange(num_frames, device=saliency.device) < (left if scope == "clip" else 0)
    return (each + first.long()).expand(batch, -1)


def frame_mass(saliency: Tensor) -> Tensor:
    """Each frame's claim on a clip's tokens: (B, F, N) to (B, F).

    The frame's saliency times the share of its patches over which it is spread, (sum s)^2 / (N sum s^2). Maps that
    sum to one in every frame have equal sums; where they then differ is how many patches it takes to hold them.
    """
    saliency = saliency.double()
    total = saliency.sum(-1)
    return total.pow(3) / (saliency.shape[-1] * saliency.square().sum(-1)).clamp_min(torch.finfo(torch.float64).tiny)


def check_scope(scope: str) -> None:
    """Raise a ValueError unless ``scope`` is a known one."""
    if scope not in _SCOPES:
        raise ValueError(f"unknown scope {scope!r}, allowed: {', '.join(_SCOPES)}")
