"""fastgaze: the pruned network with which Twitter cropped pictures."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salcap.saliency.adapter import TorchSaliency
from salcap.saliency.teachers.vxm import Blur, Convolution, Layer, MaxPooling, read_vxm
from salcap.saliency.weights import Download, find_weights

_BGR_MEAN = (103.939, 116.779, 123.68)
_DOWNLOAD = Download(
    "https://raw.githubusercontent.com/twitter-research/image-crop-analysis/"
    "91e60934a76e0acef304609e65352bbcd52ca32b/bin/fastgaze.vxm",
    489_616,
    "b76cefc218ec8969cc62b26ad0f41111800421287e7f2725d808da1d90afbdf7",
)


class FastGaze(TorchSaliency):
    """A plain CNN in torch, for any device; maps of a sixteenth of ``size``, log-densities.

    Reference:
        Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", arXiv 1801.05787;
        github.com/twitter-research/image-crop-analysis (Apache-2.0). Channel order, mean and the leaky ReLU are our
        interpretation: nothing in the file states them, they are what scores best.

    Args:
        path: ``fastgaze.vxm`` or its folder; see `find_weights`.
        size: (height, width) to which frames are stretched; each a multiple of the network's total pooling, 16.

    Raises:
        ValueError: another file, or a size that does not fit.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, size: tuple[int, int] = (608, 800)) -> None:
        weights_path = find_weights(("fastgaze/fastgaze.vxm", "fastgaze.vxm"), path, download=_DOWNLOAD)
        layers = read_vxm(weights_path)
        stride = 1
        for layer in layers:
            stride *= layer.window if isinstance(layer, MaxPooling) else 1
        if any(side < stride or side % stride for side in size):
            raise ValueError(f"size must be (height, width) in multiples of {stride}, got {size}")
        super().__init__(
            nn.Sequential(*(module for layer in layers for module in _modules(layer))),
            size,
            mean=_BGR_MEAN,
            max_value=255.0,
            channel_order="bgr",
            interpolation="bicubic",
            frames_per_pass=4,
        )
        self.weights_path = weights_path


class GaussianBlur(nn.Module):
    """Blur maps (n, c, h, w) along rows and columns, edges replicated."""

    taps: Tensor

    def __init__(self, taps: int, sigma: float) -> None:
        super().__init__()
        offset = torch.arange(taps) - taps // 2
        self.register_buffer("taps", torch.softmax(-offset.square() / (2 * sigma**2), 0), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        n, c, h, w = maps.shape
        reach = len(self.taps) // 2
        padded = F.pad(maps, (reach, reach, reach, reach), mode="replicate").flatten(0, 1)[:, None]
        blurred = F.conv2d(F.conv2d(padded, self.taps[None, None, None]), self.taps[None, None, :, None])
        return blurred.view(n, c, h, w)


def _modules(layer: Layer) -> list[nn.Module]:
    if isinstance(layer, MaxPooling):
        return [nn.MaxPool2d(layer.window)]
    if isinstance(layer, Blur):
        return [GaussianBlur(layer.taps, layer.sigma)]
    assert isinstance(layer, Convolution)
    out, channels, side, _ = layer.weight.shape
    convolution = nn.Conv2d(channels, out, side, padding=side // 2)
    convolution.weight.data = torch.from_numpy(layer.weight)
    convolution.bias.data = torch.from_numpy(layer.bias)  # type: ignore[union-attr]
    return [convolution, nn.LeakyReLU(layer.negative_slope) if layer.negative_slope else nn.ReLU()]
