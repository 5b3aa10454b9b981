"""Clips made from stills: a piece of another picture moves across, and the camera may move; where to look is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from salcap.distill.data import Batch

_PULL = (
    0.6  # share of looks that a moving thing draws; the rest stays with the picture. Our assumption, no measurement.
)


def add_motion(batch: Batch, num_frames: int, rng: np.random.Generator) -> Batch:
    """Make clips of stills; a fifth of them stay as they are, so that no motion must mean nothing.

    In the others an elliptic piece of the next picture of the batch slides in over the picture on a straight way at a
    random speed; in half of all clips the whole scene drifts besides, which draws nobody. Ground truth and teachers'
    maps drift along and give a share of their mass to the moving piece.

    Args:
        batch: stills.
        num_frames: at least 2.

    Returns:
        Clips with times 0.04 to 2 s apart and ``motion``, the density of what moves (that of the picture where nothing
        does).
    """
    count, _, _, height, width = batch.pixels.shape
    gaps = np.exp(rng.uniform(np.log(0.04), np.log(2.0), (count, 1)))
    times = torch.from_numpy(np.arange(num_frames) * gaps)
    moves = torch.from_numpy(rng.random(count) < 0.8)
    speed = rng.uniform(0.02, 0.5, (count, 1, 1)) * np.sqrt(gaps)[..., None]  # share of the sides between frames
    angle = rng.uniform(0, 2 * np.pi, (count, 1))
    heading = np.stack((np.cos(angle), np.sin(angle)), -1)
    middle = rng.uniform(0.2, 0.8, (count, 1, 2))
    steps = (np.arange(num_frames) - (num_frames - 1) / 2)[None, :, None]
    centre = torch.from_numpy(middle + steps * speed * heading).float()  # (B, F, 2)
    radius = torch.from_numpy(rng.uniform(0.05, 0.18, (count, 1, 2))).float()
    drift = torch.from_numpy(
        rng.uniform(-0.15, 0.15, (count, 1, 2)) * (rng.random((count, 1, 1)) < 0.5) * steps / num_frames
    ).float()

    scene = _drifted(batch.pixels[:, 0], drift)
    # the piece is cut from the middle of the next picture and keeps its texture while it moves
    other = batch.pixels[:, 0].roll(1, 0)
    piece = _drifted(other, (0.5 - centre) * 2)
    mask = _bump(centre, radius, (height, width), hard=True)[:, :, None] * moves[:, None, None, None, None]
    pixels = scene + mask * (piece - scene)
    thing = _bump(centre, radius * 0.6, (batch.density.shape[-2], batch.density.shape[-1]), hard=False).flatten(0, 1)
    seen = thing.sum((1, 2)) > 1e-3  # it may have left the frame
    share = _PULL * (moves.repeat_interleave(num_frames) & seen).float()[:, None, None]
    thing = thing / thing.sum((1, 2), keepdim=True).clamp_min(1e-3)

    def mix(density: Tensor) -> Tensor:
        moved = _drifted(density[:, None], drift)[:, :, 0].flatten(0, 1)
        moved = moved / moved.sum((1, 2), keepdim=True).clamp_min(1e-9)
        return moved + share * (thing - moved)

    teachers = {name: mix(values.exp()).clamp_min(1e-9).log() for name, values in batch.teachers.items()}
    base = next(iter(teachers.values())).exp() if teachers else mix(batch.density)
    return dataclasses.replace(
        batch,
        pixels=pixels,
        pts_seconds=times,
        density=mix(batch.density),
        labelled=batch.labelled.repeat_interleave(num_frames),
        teachers=teachers,
        motion=torch.where((share > 0), thing, base),
        still_indices=None,
        view=None,
    )


def _drifted(pictures: Tensor, offset: Tensor) -> Tensor:
    """(B, C, H, W) shifted by ``offset`` (B, F, 2), x and y in half sides: (B, F, C, H, W)."""
    count, frames = offset.shape[:2]
    theta = torch.zeros(count * frames, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    theta[:, :, 2] = offset.flatten(0, 1)
    many = pictures.float().repeat_interleave(frames, 0)
    grid = F.affine_grid(theta, list(many.shape), align_corners=False)
    return F.grid_sample(many, grid, padding_mode="reflection", align_corners=False).unflatten(0, (count, frames))


def _bump(centre: Tensor, radius: Tensor, size: tuple[int, int], hard: bool) -> Tensor:
    """(B, F, h, w): an ellipse with a soft edge, or a Gaussian."""
    height, width = size
    x = ((torch.arange(width) + 0.5) / width - centre[..., 0, None]) / radius[..., 0, None]
    y = ((torch.arange(height) + 0.5) / height - centre[..., 1, None]) / radius[..., 1, None]
    squared = y.square()[..., :, None] + x.square()[..., None, :]
    return ((1.0 - squared) * 4).sigmoid() if hard else torch.exp(-squared / 2)
