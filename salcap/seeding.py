"""Random numbers that are the same on every machine, device and torch version, and however a batch is split.

``torch.Generator`` promises none of that, so the random controls hash integers: every draw is a function of a seed and
of what it is drawn for (the frame's place in its clip, its pixels, the patch), never of what was drawn before.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_SALT = 0x9E3779B9  # zero would scramble to zero


def _mix(value: Tensor) -> Tensor:
    """Scramble integers below 2**32 (hash-prospector's ``16 21f0aaad 15 735a2d97 15``; no product passes 2**63)."""
    value = ((value ^ (value >> 16)) * 0x21F0AAAD) & _MASK
    value = ((value ^ (value >> 15)) * 0x735A2D97) & _MASK
    return value ^ (value >> 15)


def combine_seeds(seeds: int | Tensor, index: Tensor) -> Tensor:
    """A new seed for each pair of a seed and an index (int64, broadcast), in [0, 2**32)."""
    seeds = (torch.as_tensor(seeds, device=index.device) ^ _SALT) & _MASK
    return _mix((_mix(seeds) + index) & _MASK)


def noise(seeds: Tensor, count: int) -> Tensor:
    """``count`` draws for each seed: (...) int64 -> (..., count) int64, uniform in [0, 2**32)."""
    return combine_seeds(seeds[..., None], torch.arange(count, device=seeds.device))


def content_seeds(pixels: Tensor, seed: int = 0) -> Tensor:
    """A seed for each frame that depends on its pixels only: (T, 3, H, W) uint8 -> (T,) int64."""
    columns, rows = noise(
        torch.tensor([seed, ~seed], device=pixels.device), max(pixels.shape[-1], 3 * pixels.shape[-2])
    )
    # Float64 sums of whole numbers below 2**53 are exact, whatever the order in which a device adds them.
    lines = (pixels.double() @ (columns[: pixels.shape[-1]] & 0xFFFF).double()).long().flatten(1)
    return combine_seeds(seed, ((lines & 0xFFFFFF) * rows[: lines.shape[1]]).sum(1) & _MASK)
