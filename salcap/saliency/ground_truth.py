"""Convert recorded fixations to maps that a prediction can be compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from salcap.saliency.density import rounding_tolerance


def count_fixations(fixations: Sequence[Any], size: tuple[int, int]) -> Tensor:
    """Count the fixations on each pixel of a grid.

    Args:
        fixations: for each frame an array, tensor or list of (x, y) in pixels of the grid. The origin is the top left
            corner of the top left pixel, and fractions are cut off. A frame may have no fixations.
        size: (height, width) of the grid.

    Returns:
        (T, height, width) int64.

    Raises:
        ValueError: the points are not (n, 2), not finite, or outside the grid.
    """
    height, width = size
    maps = torch.zeros(len(fixations), height, width, dtype=torch.int64)
    for number, points in enumerate(fixations):
        places = np.asarray(points, dtype=np.float64)
        places = places.reshape(0, 2) if places.size == 0 else places
        if places.ndim != 2 or places.shape[1] != 2:
            raise ValueError(f"fixations must be (x, y) pairs for each frame, got {places.shape} for frame {number}")
        outside = ~((places >= 0) & (places < (width, height))).all(1)  # NaN counts as outside
        if outside.any():
            raise ValueError(
                f"{outside.sum()} of {len(places)} fixations of frame {number} lie outside its {width}x{height} map,"
                f" such as {tuple(places[outside][0].tolist())}"
            )
        x, y = places.astype(np.int64).T
        maps[number] = torch.from_numpy(np.bincount(y * width + x, minlength=height * width)).view(height, width)
    return maps


def check_ground_truth(name: str, truth: Tensor, log_density: Tensor, *, one_for_all: bool = False) -> Tensor:
    """A ground-truth map as float64 on the prediction's device.

    Args:
        one_for_all: a map (H, W) stands for all frames.

    Raises:
        ValueError: another shape than the prediction's, or values that are not finite or negative by more than
            rounding; see `rounding_tolerance`.
    """
    shape = log_density.shape
    if truth.shape != shape and not (one_for_all and truth.shape == shape[-2:]):
        raise ValueError(f"{name} must have the prediction's shape {tuple(shape)}, got {tuple(truth.shape)}")
    lowest, highest = (float(value) for value in truth.aminmax()) if truth.numel() else (0.0, 0.0)
    if not lowest >= -rounding_tolerance(truth.dtype) * highest or not highest < math.inf:
        raise ValueError(f"{name} must hold finite values of at least 0, got {lowest:.9g} to {highest:.9g}")
    if lowest < 0:
        truth = truth.clamp(min=0)
    return truth.to(log_density.device, torch.float64).expand(shape)
