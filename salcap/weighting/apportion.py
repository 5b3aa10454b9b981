"""Sharing a whole number of tokens in proportion to weights, each share within bounds."""

from __future__ import annotations

import torch
from torch import Tensor


def bounded_shares(weights: Tensor, total: int | Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Shares proportional to the weights, except where a bound holds: ``clamp(c * weights, low, high)``.

    The one c at which the shares sum to ``total``, found exactly: the sum grows piecewise linearly with c and bends
    only where a share leaves ``low`` or reaches ``high``.

    Args:
        weights: (..., n), finite, >= 0; all zero counts as all equal.
        total: to share, between the sum of the lows and the sum of the highs; a tensor is (..., 1).
        low, high: bounds of each share, low > 0; tensors broadcast to (..., n).

    Returns:
        (..., n) float64.
    """
    weights = weights.double()
    weights = weights.clamp_min(1e-9 * weights.amax(-1, keepdim=True))
    weights = torch.where(weights > 0, weights, 1.0)
    low, high = (torch.as_tensor(b, dtype=torch.float64, device=weights.device).expand_as(weights) for b in (low, high))
    bends, order = torch.cat([low / weights, high / weights], -1).sort(-1)
    slopes = torch.cat([weights, -weights], -1).gather(-1, order).cumsum(-1)
    steps = (slopes[..., :-1] * bends.diff()).cumsum(-1)
    sums = low.sum(-1, keepdim=True) + torch.nn.functional.pad(steps, (1, 0))  # of the shares, at each bend
    missing = torch.as_tensor(total, device=weights.device) - sums
    last = ((missing >= 0).sum(-1, keepdim=True) - 1).clamp(0, bends.shape[-1] - 2)
    slope = slopes.gather(-1, last).clamp_min(torch.finfo(torch.float64).tiny)
    factor = bends.gather(-1, last) + missing.gather(-1, last) / slope
    return (torch.minimum(factor, bends.gather(-1, last + 1)) * weights).clamp(low, high)


def apportion(weights: Tensor, total: int, low: int, high: int | Tensor) -> Tensor:
    """Whole shares by the largest remainder: (..., n) int64 that sum to ``total``, each from ``low`` to ``high``."""
    shares = bounded_shares(weights, total, low, high)
    whole = shares.floor()
    left = total - whole.sum(-1, keepdim=True)
    place = (shares - whole).argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return (whole + (place < left)).long()
