"""Spectral residual: what is unexpected in a frame's spectrum stands out in the frame."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from salcap.saliency.baselines import center_log_density
from salcap.saliency.model import SaliencyModel

_LUMA = (0.299, 0.587, 0.114)
_EPSILON = 1e-8  # of log-amplitude
_FLAT = 1e-3  # range of grey, a quarter of an 8-bit step, below which a frame shows nothing
_LONGEST = 4  # times the shorter side
_FLOOR = 1e-6  # of the peak: no pixel is impossible


class SpectralResidual(SaliencyModel):
    """Hou & Zhang, "Saliency Detection: A Spectral Residual Approach", CVPR 2007, equations 10 to 15.

    The grey frame at 64 pixels on its shorter side (longer one at most 256); log-amplitude minus its 3x3 mean; back
    with the phase kept; squared; Gaussian of sigma 2.5 pixels. 64, 3x3 with replicated edges, 2.5 and zeros beyond the
    map's edges are those of the authors' published code.

    Args:
        center_prior: multiply by the Gaussian of the `center` backbone, since people look to the middle.
        sigma: of the smoothing, in map pixels.
    """

    kernel: Tensor

    def __init__(self, center_prior: bool = True, sigma: float = 2.5, side: int = 64) -> None:
        super().__init__()
        if not (sigma > 0.0 and side >= 1):
            raise ValueError(f"sigma must be above 0 and side at least 1, got {sigma} and {side}")
        self.center_prior, self.side = center_prior, side
        radius = round(3 * sigma)
        kernel = torch.exp(-torch.arange(-radius, radius + 1).square() / (2 * sigma**2))
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)

    def forward(self, pixels: Tensor, pts_seconds: Tensor | None = None) -> Tensor:
        pixels = pixels.float()  # there is no FFT in half precision
        height, width = self._map_size(*pixels.shape[-2:])
        grey = torch.einsum("tchw,c->thw", pixels, pixels.new_tensor(_LUMA))[:, None]
        grey = F.interpolate(grey, (height, width), mode="bilinear", align_corners=False, antialias=True)
        spectrum = torch.fft.fft2(grey)
        log_amplitude = (spectrum.abs() + _EPSILON).log()
        residual = log_amplitude - F.avg_pool2d(F.pad(log_amplitude, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        saliency = torch.fft.ifft2(torch.polar(residual.exp(), spectrum.angle())).abs().square()
        kernel = self.kernel.to(saliency)
        saliency = F.conv2d(saliency, kernel[None, None, :, None], padding=(len(kernel) // 2, 0))
        saliency = F.conv2d(saliency, kernel[None, None, None, :], padding=(0, len(kernel) // 2))[:, 0]
        log_density = (saliency + _FLOOR * saliency.amax((-2, -1), keepdim=True)).log()
        if self.center_prior:
            log_density = log_density + center_log_density(height, width, sigma=0.25).to(log_density)
        flat = grey.amax((-3, -2, -1)) - grey.amin((-3, -2, -1)) < _FLAT
        return log_density.masked_fill(flat[:, None, None], 0.0)

    def _map_size(self, height: int, width: int) -> tuple[int, int]:
        scale = self.side / min(height, width)
        longest = _LONGEST * self.side
        return min(round(height * scale), longest), min(round(width * scale), longest)
