"""Zoom: where in each frame a closer view is cut, and the map of what it shows."""

from __future__ import annotations

import torch
from torch import Tensor

from salcap.weighting.pooling import WHOLE_FRAME, Box, check_box, relative_saliency

POSITIONS = 17  # of the window along each side of the frame, evenly spread
LEAST_SHARE = 0.5  # of the mass in the frame's best window that the chosen one holds
SPEED_COST = 1.0  # nats, for each frame side per second at which the window moves
_OFF_CENTRE_COST = 1e-3  # nats per frame side: decides only between windows of equal mass
_LEAST_GAP = 0.01  # seconds, between frames of equal times


def zoom_boxes(
    log_density: Tensor, pts_seconds: Tensor, frame_size: tuple[int, int], zoom: float, seen: Box = WHOLE_FRAME
) -> Tensor:
    """The window of each frame in which people look most, steady over time.

    The window has 1/zoom of each side and starts on a whole pixel. The path of windows through the clip is the
    cheapest, found by dynamic programming: each costs -log of its mass, and moving costs `SPEED_COST` for its speed,
    the distance of the centres in frame sides over the seconds between the frames. Of windows of equal mass the one
    nearest to the map's centre of mass is taken (for a constant map the middle one), then the first in raster order.

    Two bounds hold. No window has less than `LEAST_SHARE` (half) of the mass in its frame's best window. And of all
    paths within that, the mean speed is at most log(2) * F / (F - 1) sides per second above the slowest one's: the
    window stands still where there is little to win by moving.

    A `center` map gives a centre crop, and a `random` one a crop in a place that means nothing: the controls.

    Args:
        log_density: (F, h, w) over the whole frame; any additive constant, -inf for impossible pixels.
        pts_seconds: (F,) non-decreasing.
        frame_size: (H, W) pixels.
        zoom: above 1.
        seen: the part of the window that the captioner sees, in fractions of it: only mass in there counts.

    Returns:
        (F, 4) float64: left, top, right, bottom in fractions of the frame.

    Raises:
        ValueError: a zoom of 1 or less, shapes that do not match, NaN or +inf in a map, or one without mass.
    """
    if not zoom > 1.0:
        raise ValueError(f"zoom must be above 1, got {zoom}")
    if log_density.ndim != 3 or pts_seconds.shape != log_density.shape[:1]:
        raise ValueError(
            f"log_density must be (F, h, w) and pts_seconds (F,), got {tuple(log_density.shape)}"
            f" and {tuple(pts_seconds.shape)}"
        )
    logits = log_density.detach().cpu().double()
    if not bool(torch.isfinite(logits.amax((-2, -1))).all()):
        raise ValueError("log_density must hold no NaN or +inf and some mass in every frame")
    density = logits.flatten(1).softmax(-1).view(logits.shape)
    left, top, right, bottom = check_box(seen)
    rows, columns = (_windows(size, zoom) for size in frame_size)
    seen_rows, seen_columns = _inner(rows, top, bottom), _inner(columns, left, right)
    mass = _coverage(seen_rows, density.shape[-2]) @ density @ _coverage(seen_columns, density.shape[-1]).mT
    centres = torch.cartesian_prod(seen_rows.mean(1), seen_columns.mean(1))  # (S, 2) as (y, x)
    path = _cheapest_path(_window_costs(mass.flatten(1), centres, _centre_of_mass(density)), centres, pts_seconds)
    y, x = rows[path // len(columns)], columns[path % len(columns)]
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)


def cut_maps(log_density: Tensor, boxes: Tensor) -> Tensor:
    """Each frame's map as its box shows it: (F, h, w) and (F, 4) to (F, h, w) float32, log-density over the box.

    Pixels count by the area that is inside; a constant map stays exactly constant.

    Raises:
        ValueError: what `relative_saliency` refuses.
    """
    grid = (log_density.shape[-2], log_density.shape[-1])
    cut = [relative_saliency(one, grid, tuple(box)) for one, box in zip(log_density, boxes.tolist(), strict=True)]
    return (torch.stack(cut) / (grid[0] * grid[1])).log().unflatten(-1, grid)


def _windows(length: int, zoom: float) -> Tensor:
    """(n, 2) start and stop of the windows along a side of ``length`` pixels, in fractions of it."""
    width = max(1, round(length / zoom))
    starts = torch.linspace(0, length - width, POSITIONS, dtype=torch.float64).round().unique()
    return torch.stack([starts, starts + width], 1) / length


def _inner(windows: Tensor, start: float, stop: float) -> Tensor:
    width = windows[:, 1:] - windows[:, :1]
    return windows[:, :1] + width * torch.tensor([start, stop], dtype=torch.float64)


def _coverage(windows: Tensor, length: int) -> Tensor:
    """Share of each of ``length`` map pixels that lies in each window: (n, length)."""
    pixel = torch.arange(length, dtype=torch.float64)
    start, stop = (length * windows).T[..., None]
    return (torch.minimum(stop, pixel + 1) - torch.maximum(start, pixel)).clamp_min(0.0)


def _centre_of_mass(density: Tensor) -> Tensor:
    """(F, 2) as (y, x) in fractions of the frame."""
    y, x = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in density.shape[-2:])
    return torch.stack([density.sum(2) @ y, density.sum(1) @ x], 1)


def _window_costs(mass: Tensor, centres: Tensor, centre_of_mass: Tensor) -> Tensor:
    """(F, S) of each window in each frame; inf where it holds too little."""
    enough = mass >= LEAST_SHARE * mass.amax(1, keepdim=True)
    return (_OFF_CENTRE_COST * torch.cdist(centre_of_mass, centres) - mass.log()).where(enough, torch.inf)


def _cheapest_path(costs: Tensor, centres: Tensor, pts_seconds: Tensor) -> Tensor:
    """(F,) the window of each frame, of the path with the least sum of ``costs`` (F, S) and moves."""
    distance = SPEED_COST * torch.cdist(centres, centres)
    best, steps = costs[0], []
    for cost, gap in zip(costs[1:], pts_seconds.diff().clamp_min(_LEAST_GAP).tolist(), strict=True):
        reached, step = (best[:, None] + distance / gap).min(0)
        best = reached + cost
        steps.append(step)
    path = [best.argmin()]
    for step in reversed(steps):
        path.append(step[path[-1]])
    return torch.stack(path[::-1])
