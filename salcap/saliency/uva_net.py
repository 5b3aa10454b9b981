"""The student: UVA-Net's two-stream network of channel-attention inverted residuals on 64x64 frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salcap.saliency.streams import StreamModel, Streams

_FINE_EXPANSION = 2
_GAP_SECONDS = (1 / 120, 20.0)  # gaps between frames are read within these bounds


class ConvNorm(nn.Module):
    """Convolution and BatchNorm, which `fold` makes one convolution."""

    norm: nn.BatchNorm2d | None

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.norm is None else self.norm(x)

    def fold(self) -> None:
        """Make them one; does nothing the second time."""
        if self.norm is not None:
            self.conv = nn.utils.fuse_conv_bn_eval(self.conv.eval(), self.norm.eval())
            self.norm = None


class ChannelAttention(nn.Module):
    """Gates of a residual branch's channels from its global average and its global maximum.

    One two-layer perceptron reads both; the gate is the sigmoid of the sum (as in Woo et al., "CBAM", ECCV 2018, which
    UVA-Net's text follows as far as we know it).

    Shape: (N, C, H, W) to (N, C, 1, 1) in 0..1.
    """

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(4, channels // reduction)
        self.squeeze, self.excite = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = F.relu(self.squeeze(x.mean((2, 3), keepdim=True))) + F.relu(self.squeeze(x.amax((2, 3), keepdim=True)))
        return self.excite(seen).sigmoid()


class CARes(nn.Module):
    """UVA-Net's block: a MobileNetV2 inverted residual whose branch is gated by `ChannelAttention`."""

    def __init__(self, inputs: int, outputs: int, expansion: int = 3, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvNorm(inputs, hidden)
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride, groups=hidden)
        self.project = ConvNorm(hidden, outputs)
        self.attention = ChannelAttention(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        branch = self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        branch = branch * self.attention(branch)
        return x + branch if self.residual else branch


class UvaNet(StreamModel):
    """Saliency student after UVA-Net (Fu et al., AAAI 2020, arXiv 1904.04449).

    A shared trunk sees every frame once; the spatial branch reads it, the temporal branch reads its change between
    neighbouring frames and the time between them, and their fusion is the prediction. One frame alone, or frames
    without times, take the spatial way only. Sizes are our own: the paper's table is not known to us.

    Args:
        image_size: frames are squeezed to this square; a multiple of 32.
        widths: channels at strides 2, 4, 8 and 16.
        depths: blocks at strides 4, 8 and 16.
        expansion: of the blocks at strides 8 and 16; the finer ones, which take most of the time, have 2.
        prior: add a learned map of where people look in any frame.
    """

    def __init__(
        self,
        image_size: int = 64,
        widths: tuple[int, int, int, int] = (16, 24, 48, 64),
        depths: tuple[int, int, int] = (1, 2, 3),
        expansion: int = 3,
        prior: bool = True,
    ) -> None:
        super().__init__((image_size, image_size))
        if image_size < 32 or image_size % 32:
            raise ValueError(f"image_size must be a positive multiple of 32, got {image_size}")
        if len(widths) != 4 or len(depths) != 3 or min(depths) < 1:
            raise ValueError(f"expected 4 widths and 3 depths of at least 1, got {widths} and {depths}")
        stem, fine, middle, coarse = widths
        self.stem = nn.ModuleList((ConvNorm(3, stem, 3, stride=2), ConvNorm(stem, fine, 3, stride=2)))
        self.fine = nn.Sequential(*(CARes(fine, fine, _FINE_EXPANSION) for _ in range(depths[0])))
        self.middle = _stage(fine, middle, depths[1], expansion)
        self.coarse = _stage(middle, coarse, depths[2], expansion)
        self.spatial_middle = _Merge(coarse, middle)
        self.spatial_fine = _Merge(middle, fine)
        self.spatial_head = _Head(fine)
        self._feature_channels = (fine, middle, coarse, middle, fine)
        self.gap = nn.Linear(3, 2 * fine)
        self.temporal_fine = CARes(fine, fine, _FINE_EXPANSION)
        self.temporal_middle = _stage(fine, middle, 1, expansion)
        self.temporal_merge = _Merge(middle, fine)
        self.temporal_head = _Head(fine)
        self.fusion = CARes(2 * fine, fine, _FINE_EXPANSION)
        self.fused_head = _Head(fine)
        self.prior = nn.Parameter(torch.zeros(image_size // 4, image_size // 4)) if prior else None

    def streams(self, pixels: Tensor, pts_seconds: Tensor | None = None) -> Streams:
        x = (pixels.flatten(0, 1) - 0.5) * 4
        for conv in self.stem:
            x = F.relu6(conv(x))
        fine = self.fine(x)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        merged = self.spatial_middle(coarse, middle)
        seen = self.spatial_fine(merged, fine)
        spatial = self.read_out(seen)
        features = (fine, middle, coarse, merged, seen)
        if pts_seconds is None:
            return Streams(spatial, None, spatial, features)
        change = self._change(fine.unflatten(0, pixels.shape[:2]), pts_seconds)
        change = self.temporal_fine(change)
        moving = self.temporal_merge(self.temporal_middle(change), change)
        temporal = self._with_prior(self.temporal_head(moving))
        fused = spatial + self.fused_head(self.fusion(torch.cat((seen, moving), 1)))
        return Streams(spatial, temporal, fused, features)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        return self._feature_channels

    def read_out(self, features: Tensor) -> Tensor:
        return self._with_prior(self.spatial_head(features))

    def fold(self) -> UvaNet:
        """Make every BatchNorm part of its convolution, for inference; returns itself."""
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        return self

    def _change(self, features: Tensor, pts_seconds: Tensor) -> Tensor:
        """Difference of each frame's features to the frame before (the first: to the one after), told the time gap."""
        change = features[:, 1:] - features[:, :-1]  # not diff(), which ONNX lacks
        gap = pts_seconds[:, 1:] - pts_seconds[:, :-1]
        change = torch.cat((-change[:, :1], change), 1).flatten(0, 1)
        gap = torch.cat((gap[:, :1], gap), 1).flatten().clamp(*_GAP_SECONDS).log().to(features)
        scale, shift = self.gap(torch.stack((gap, gap.square() / 4, gap.tanh()), 1))[:, :, None, None].chunk(2, 1)
        return change * (1 + scale) + shift * change.abs()

    def _with_prior(self, logits: Tensor) -> Tensor:
        if self.prior is None:
            return logits
        prior = F.interpolate(self.prior[None, None], logits.shape[-2:], mode="bilinear", align_corners=False)
        return logits + prior[0]


def _stage(inputs: int, outputs: int, depth: int, expansion: int) -> nn.Sequential:
    """Blocks of one resolution, half of the one before."""
    return nn.Sequential(
        CARes(inputs, outputs, expansion, stride=2), *(CARes(outputs, outputs, expansion) for _ in range(depth - 1))
    )


class _Merge(nn.Module):
    """Coarse features brought up, joined with finer ones by a sum, then a block."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.lateral = ConvNorm(coarse, fine)
        self.block = CARes(fine, fine, _FINE_EXPANSION)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        return self.block(F.interpolate(self.lateral(coarse), scale_factor=2.0, mode="nearest") + fine)


class _Head(nn.Module):
    """Features to a map of twice their resolution: four values a cell, laid out as 2x2 pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)[:, 0]
