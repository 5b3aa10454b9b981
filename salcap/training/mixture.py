"""What a training batch meets: maps, modes, policies and budgets mixed, so that any choice at test time is natural."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from salcap.config import POLICIES, Weighting

_KEEP_RATIOS = (0.125, 0.25, 0.25, 0.25, 0.375, 0.5, 0.5, 0.75)


def draw_weighting(rng: np.random.Generator, *, light: bool = False) -> Weighting:
    """Draw how saliency acts on one batch.

    Args:
        light: draw small budgets only (for batches of several frames).
    """
    kind = rng.random()
    if kind < 0.15 and not light:
        return Weighting()
    if kind < 0.25 and not light:
        return Weighting("scale", strength=float(rng.choice((0.25, 0.5, 1.0))))
    return Weighting(
        "scale+prune" if rng.random() < 0.4 else "prune",
        policy=str(rng.choice(POLICIES)),
        keep_ratio=float(rng.choice(_KEEP_RATIOS[:3] if light else _KEEP_RATIOS)),
        strength=float(rng.choice((0.25, 0.5, 1.0))),
        seed=int(rng.integers(2**31)),
    )


def draw_log_density(rng: np.random.Generator, density: Tensor, *, teacher: bool = False) -> Tensor:
    """Maps for one batch: mostly the teacher's, else a centre prior, random blobs or none at all.

    Args:
        density: (B, F, g, g) teacher density; NaN where the teacher did not see the image: there, a centre prior.
        teacher: always the teacher's.

    Returns:
        (B, F, g, g) log-density.
    """
    batch, frames, side, _ = density.shape
    kind = 0.0 if teacher else rng.random()
    if kind < 0.6:
        known = density.clamp_min(1e-7).log()
        return torch.where(density.isnan(), _blobs(rng, batch, frames, side, 0.0), known)
    if kind < 0.75:
        return _blobs(rng, batch, frames, side, 0.0)
    if kind < 0.9:
        return _blobs(rng, batch, frames, side, 0.3)
    return torch.full_like(density, -float(np.log(side * side)))


def _blobs(rng: np.random.Generator, batch: int, frames: int, side: int, wander: float) -> Tensor:
    """One Gaussian a frame of random width, its centre ``wander`` (share of the side) from the middle."""
    centres = torch.from_numpy(rng.normal(0.5, wander, (2, batch, frames, 1, 1)).clip(0, 1)).float()
    sigma = torch.from_numpy(rng.uniform(0.12, 0.35, (batch, frames, 1, 1))).float()
    axis = (torch.arange(side) + 0.5) / side
    squared = (axis[:, None] - centres[0]) ** 2 + (axis[None, :] - centres[1]) ** 2
    return torch.log_softmax((-squared / (2 * sigma**2)).flatten(2), dim=-1).unflatten(2, (side, side))
