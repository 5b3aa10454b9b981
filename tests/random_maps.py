"""Drawn features and saliency for tests, the same in every run."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def peaked(*shape: int, seed: int = 0) -> Tensor:
    """Saliency with mean 1 in each frame and a few high patches."""
    saliency = (2 * draw(*shape, seed=seed)).exp()
    return saliency / saliency.mean(-1, keepdim=True)
