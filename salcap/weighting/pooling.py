"""From a saliency map to one weight for each patch, by exact area pooling."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

Grid = tuple[int, int]
Box = tuple[float, float, float, float]

WHOLE_FRAME: Box = (0.0, 0.0, 1.0, 1.0)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # a tensor cached under inference mode would break the next training step
def overlap_matrix(length: int, cells: int, start: float, stop: float, device: torch.device) -> Tensor:
    """Pixels of a line covered by each of ``cells`` equal cells between two fractions of it: (cells, length) float32.

    Rows sum to the cell's length in pixels; with start 0 and stop 1 columns sum to 1. Cached: do not write into it.
    """
    edges = length * torch.linspace(start, stop, cells + 1, dtype=torch.float64)
    pixel = torch.arange(length, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    return overlap.clamp_min(0.0).float().to(device)


def pool_to_grid(density: Tensor, grid: Grid, box: Box = WHOLE_FRAME) -> Tensor:
    """Integrate a density over the cells of the captioner's patch grid.

    Every pixel counts by the area that a cell covers of it, so maps need not tile into the grid and may be coarser
    than it. The mass is kept: over the whole frame the cells sum to what the map sums to.

    Args:
        density: (..., H, W), mass of each pixel.
        grid: (gh, gw) cells.
        box: (left, top, right, bottom) in fractions of the frame: the part that the captioner sees.

    Returns:
        (..., gh, gw), the integral over each cell.

    Raises:
        ValueError: an empty map, a grid below 1x1, or a box that is empty or leaves the frame.
    """
    (left, top, right, bottom), (gh, gw) = check_box(box), check_grid(grid)
    if density.ndim < 2 or 0 in density.shape[-2:]:
        raise ValueError(f"density must be (..., H, W) with at least one pixel, got {tuple(density.shape)}")
    height, width = density.shape[-2:]
    rows = overlap_matrix(height, gh, top, bottom, density.device).to(density.dtype)
    columns = overlap_matrix(width, gw, left, right, density.device).to(density.dtype)
    return rows @ density @ columns.mT


def relative_saliency(log_density: Tensor, grid: Grid, box: Box = WHOLE_FRAME) -> Tensor:
    """How much more than an average patch each patch of a frame is looked at: the weight that all modes use.

    Args:
        log_density: (..., H, W) over the whole frame; any additive constant, -inf for impossible pixels.
        grid: (gh, gw) patches of the captioner.
        box: (left, top, right, bottom) in fractions of the frame: the part that the captioner sees.

    Returns:
        (..., gh * gw) float32 in raster order, mean 1 in each frame; exactly 1.0 everywhere where the map is constant.

    Raises:
        ValueError: NaN or +inf in a map, a map without mass in the box, or what `pool_to_grid` refuses.
    """
    (left, top, right, bottom), (gh, gw) = check_box(box), check_grid(grid)
    if log_density.ndim < 2 or 0 in log_density.shape[-2:]:
        raise ValueError(f"log_density must be (..., H, W) with at least one pixel, got {tuple(log_density.shape)}")
    height, width = log_density.shape[-2:]
    y, x = _pixel_span(top, bottom, height), _pixel_span(left, right, width)
    seen = log_density[..., y, x].float()
    # The peak within the box, not of the frame: what lies outside may be so much higher that the box underflows.
    peak = seen.amax((-2, -1), keepdim=True)
    if not bool(torch.isfinite(peak).all()):
        raise ValueError("log_density must hold no NaN or +inf and some mass in every frame's visible part")
    constant = seen.amin((-2, -1)) == peak[..., 0, 0]
    rows = overlap_matrix(height, gh, top, bottom, seen.device)[:, y]
    columns = overlap_matrix(width, gw, left, right, seen.device)[:, x]
    mass = (rows @ (seen - peak).exp() @ columns.mT).flatten(-2)
    # Pooling rounds: only this keeps a neutral map exactly neutral.
    return torch.where(constant[..., None], torch.ones_like(mass), mass / mass.mean(-1, keepdim=True))


def check_grid(grid: Grid) -> Grid:
    """The grid as whole numbers; a ValueError unless there are rows and columns."""
    gh, gw = grid
    if gh < 1 or gw < 1:
        raise ValueError(f"grid must be (rows, columns) of at least 1, got {grid}")
    return int(gh), int(gw)


def check_box(box: Box) -> Box:
    """The box as it is; a ValueError unless it lies within the frame and has an area."""
    left, top, right, bottom = box
    if not (0.0 <= left < right <= 1.0 and 0.0 <= top < bottom <= 1.0):
        raise ValueError(f"box must be (left, top, right, bottom) with 0 <= left < right <= 1 and so on, got {box}")
    return box


def _pixel_span(start: float, stop: float, length: int) -> slice:
    first = min(math.floor(start * length), length - 1)
    return slice(first, max(math.ceil(stop * length), first + 1))
