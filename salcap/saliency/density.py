"""Log-densities: the maps that backbones, losses and captioners exchange."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_ROUNDING = 1e-3  # how far a map may be out of its range, as a share of the range
_DEEPEST = -100.0  # relative to the peak; e^-100 of it is nothing, and interpolating -inf would be NaN


def rounding_tolerance(dtype: torch.dtype) -> float:
    """How far rounding may carry a map out of its range, as a share of that range: 0.001, or 2 steps of its dtype.

    Interpolation and Fourier transforms leave values such as 1.000001 or -1e-17 where 1 and 0 are meant.
    """
    return max(_ROUNDING, 2 * torch.finfo(dtype).eps) if dtype.is_floating_point else 0.0


def normalise_log_density(logits: Tensor) -> Tensor:
    """Turn any real-valued map into a log-density: (..., H, W) to float32 whose exp sums to 1 over each frame.

    Equal values stay exactly equal.

    Raises:
        ValueError: NaN or +inf, a frame without any mass (-inf everywhere), or an empty map.
    """
    if logits.ndim < 2 or 0 in logits.shape:
        raise ValueError(f"a map must be (..., H, W) with at least one pixel, got {tuple(logits.shape)}")
    logits = logits.float()
    peak = logits.amax((-2, -1), keepdim=True)
    if not bool(torch.isfinite(peak).all()):
        raise ValueError("a map must hold no NaN or +inf and at least one finite value in every frame")
    logits = logits - peak
    return logits - logits.flatten(-2).logsumexp(-1)[..., None, None]


def resize_log_density(log_density: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring maps to another resolution, bilinear in log space, and renormalise: (..., H, W) to (..., *size).

    Areas are averaged where the map shrinks. A constant map stays exactly constant.

    Raises:
        ValueError: a size below 1x1, or what `normalise_log_density` refuses.
    """
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"size must be (height, width) of at least 1, got {size}")
    log_density = normalise_log_density(log_density)
    if log_density.shape[-2:] == (height, width):
        return log_density
    # From the peak down, since interpolation weights sum to 1 only up to rounding: zeros stay zeros.
    depth = (log_density - log_density.amax((-2, -1), keepdim=True)).clamp_min(_DEEPEST)
    depth = depth.reshape(-1, 1, *depth.shape[-2:])
    shrinks = height < depth.shape[-2] or width < depth.shape[-1]
    resized = F.interpolate(depth, (height, width), mode="bilinear", align_corners=False, antialias=shrinks)
    return normalise_log_density(resized.reshape(*log_density.shape[:-2], height, width))
