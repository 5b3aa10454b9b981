"""Baselines that ignore the content of the frame; a real backbone has to beat them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from salcap.saliency.model import SaliencyModel
from salcap.seeding import content_seeds, noise

_SIDE = 64  # side of the maps of `center` and `random` in pixels, for frames of any size


class Uniform(SaliencyModel):
    """Return exactly constant maps, with which every captioner behaves as if unmodified."""

    def forward(self, pixels: Tensor, pts_seconds: Tensor | None = None) -> Tensor:
        return pixels.new_zeros(len(pixels), 1, 1)


class Center(SaliencyModel):
    """Model the centre bias of human gaze: a Gaussian in the middle of the frame, stretched to its shape.

    Args:
        sigma: standard deviation as a share of the frame's width and of its height.
    """

    def __init__(self, sigma: float = 0.25) -> None:
        super().__init__()
        if not 0.0 < sigma < float("inf"):
            raise ValueError(f"sigma must be finite and above 0, got {sigma}")
        self.sigma = sigma

    def forward(self, pixels: Tensor, pts_seconds: Tensor | None = None) -> Tensor:
        return center_log_density(_SIDE, _SIDE, self.sigma).to(pixels).expand(len(pixels), -1, -1)


class Random(SaliencyModel):
    """Return smooth blobs in random places, as a control.

    The maps are smooth like real ones, since white noise would average out within a patch. They depend on each frame's
    pixels and the seed only, so they are the same on every machine and in every batch, and differ between images.

    Args:
        seed: seed of the draws.
        contrast: range of the log-density. The default makes the maps about as peaked as those of `spectral_residual`.
        cells: number of blobs along each side of the frame.
    """

    def __init__(self, seed: int = 0, contrast: float = 7.0, cells: int = 8) -> None:
        super().__init__()
        if not (contrast >= 0.0 and 1 <= cells <= _SIDE):
            raise ValueError(f"contrast must be >= 0 and cells from 1 to {_SIDE}, got {contrast} and {cells}")
        self.seed, self.contrast, self.cells = seed, contrast, cells

    def forward(self, pixels: Tensor, pts_seconds: Tensor | None = None) -> Tensor:
        seeds = content_seeds((pixels.float() * 255).round().to(torch.uint8), self.seed)
        blobs = noise(seeds, self.cells**2).view(-1, 1, self.cells, self.cells).float() * (self.contrast / 2**32)
        return F.interpolate(blobs, (_SIDE, _SIDE), mode="bilinear", align_corners=False)[:, 0]


def center_log_density(height: int, width: int, sigma: float) -> Tensor:
    """Return the log of a centred Gaussian, (height, width), 0 at its peak; ``sigma`` is a share of each side."""
    y = (torch.arange(height) + 0.5) / height - 0.5
    x = (torch.arange(width) + 0.5) / width - 0.5
    return -(y.square()[:, None] + x.square()) / (2 * sigma**2)
