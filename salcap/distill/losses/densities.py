"""What the losses on maps share: one grid for all maps, ground truth as log-density, KL and correlation per map."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from salcap.saliency.density import resize_log_density

_FLOOR = -100.0  # e^-100 is no mass in float32; keeps a divergence from an impossible pixel finite
_FLATTEST = 1e-3  # product of the standard deviations of relative densities below which maps count as constant


def at_grid(name: str, log_density: Tensor, like: Tensor) -> Tensor:
    """A model's maps, normalised in float32, on the grid of ``like``: (N, H, W) to (N, h, w).

    Raises:
        ValueError: another number of maps, or what `resize_log_density` refuses.
    """
    check_maps(name, log_density, len(like))
    return resize_log_density(log_density, (like.shape[-2], like.shape[-1]))


def ground_truth_at_grid(density: Tensor, like: Tensor) -> Tensor:
    """Human densities as log-density on a model's grid: (N, H, W) of any positive sum to (N, h, w), without gradient.

    Resized before the logarithm, unlike models' maps: a fixation beside pixels that nobody looked at must keep its
    mass.

    Raises:
        ValueError: another number of maps, a negative or not finite value, or a map without mass.
    """
    check_maps("density", density, len(like))
    density = density.detach().float()
    mass = density.sum((-2, -1), keepdim=True)
    if not bool((density >= 0).all() & (mass > 0).all() & torch.isfinite(mass).all()):
        raise ValueError("density must be finite and >= 0, with mass in every map; leave unlabelled samples out")
    height, width = like.shape[-2:]
    if density.shape[-2:] != like.shape[-2:]:
        shrinks = height < density.shape[-2] or width < density.shape[-1]
        density = F.interpolate(
            (density / mass)[:, None], (height, width), mode="bilinear", align_corners=False, antialias=shrinks
        )[:, 0]
        mass = density.sum((-2, -1), keepdim=True)
    return (density / mass).log()


def check_maps(name: str, maps: Tensor, num_maps: int | None = None) -> None:
    """Raise a ValueError unless ``maps`` is (N, h, w), and N is ``num_maps`` where that is given."""
    if maps.ndim != 3 or 0 in maps.shape or num_maps not in (None, len(maps)):
        wanted = "N" if num_maps is None else num_maps
        raise ValueError(f"{name} must be ({wanted}, h, w) with at least one pixel, got {tuple(maps.shape)}")


def kl_divergence(log_target: Tensor, log_prediction: Tensor) -> Tensor:
    """KL(target || prediction) over the last dimension, in nats: two (..., K) log-probabilities to (...)."""
    log_target, log_prediction = log_target.clamp_min(_FLOOR), log_prediction.clamp_min(_FLOOR)
    return (log_target.exp() * (log_target - log_prediction)).sum(-1)


def relative_density(log_density: Tensor) -> Tensor:
    """Density in units of the uniform map: mean 1 over each frame, whatever the grid."""
    return log_density.exp() * (log_density.shape[-2] * log_density.shape[-1])


def correlation(log_density: Tensor, log_target: Tensor) -> Tensor:
    """Pearson's correlation of the densities of each pair of maps: two (N, h, w) to (N,); 0 where one is constant."""
    first, second = (relative_density(maps).flatten(1) - 1 for maps in (log_density, log_target))
    variances = first.square().mean(1) * second.square().mean(1)
    return (first * second).mean(1) * variances.clamp_min(_FLATTEST**2).rsqrt()
