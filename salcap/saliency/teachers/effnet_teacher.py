"""The big teacher of our own: an EfficientNet-Lite trunk with a multi-scale decoder, and a stream for motion."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salcap.efficientnet_lite import EfficientNetLite, load_imagenet_trunk
from salcap.saliency.streams import StreamModel, Streams


class EffnetTeacher(StreamModel):
    """Saliency from ImageNet features of four depths, as DeepGaze II reads VGG's (Kümmerer et al., ICCV 2017).

    The trunk is frozen up to stride 16; what lies behind may be tuned. Decoder and sizes are our own.

    Args:
        trunk: "lite0", "lite1" or "lite2".
        image_size: (height, width), multiples of 32.
        width: channels of the decoder.
        temporal: also a stream that reads the change of the trunk's features between frames.
        dropout: share of the decoder's input channels that training leaves out.
    """

    def __init__(
        self,
        trunk: str = "lite2",
        image_size: tuple[int, int] = (256, 320),
        width: int = 64,
        temporal: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(image_size)
        if any(side < 32 or side % 32 for side in image_size):
            raise ValueError(f"image_size must be (height, width) in multiples of 32, got {image_size}")
        self.trunk = EfficientNetLite(trunk)
        self.trunk_name, self.width = trunk, width
        _, *channels = self.trunk.feature_channels
        self.decoder = _Decoder((*channels, 1280), width, dropout)
        self.head = _Head(width)
        if temporal:
            self.change_decoder = _Decoder(tuple(channels[:2]), width, dropout)
            self.change_head, self.fused_head = _Head(width), _Head(2 * width)
        self.temporal = temporal
        self.prior = nn.Parameter(torch.zeros(image_size[0] // 16, image_size[1] // 16))

    def streams(self, pixels: Tensor, pts_seconds: Tensor | None = None) -> Streams:
        with torch.no_grad():
            shallow = self.trunk.shallow(pixels.flatten(0, 1))[1:]
        deep = self.trunk.deepen(shallow[-1])
        seen = self.decoder((*shallow, deep, self.trunk.semantic(deep)))
        spatial = self.read_out(seen)
        if pts_seconds is None or not self.temporal:
            return Streams(spatial, None, spatial, (seen,))
        moving = self.change_decoder([_change(x, pixels.shape[:2]) for x in shallow])
        temporal = self._with_prior(self.change_head(moving))
        fused = spatial + self.fused_head(torch.cat((seen, moving), 1))
        return Streams(spatial, temporal, fused, (seen,))

    @property
    def feature_channels(self) -> tuple[int, ...]:
        return (self.width,)

    def read_out(self, features: Tensor) -> Tensor:
        return self._with_prior(self.head(features))

    def load_pretrained_parts(self) -> None:
        """ImageNet weights of the trunk.

        Raises:
            ImportError: the weight package of the extra ``[train]`` is not installed.
        """
        self.trunk.load_state_dict(load_imagenet_trunk(self.trunk_name).state_dict())
        self.trunk.requires_grad_(False)

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.trunk.tail.parameters()
        yield from self.trunk.head.parameters()

    def _with_prior(self, logits: Tensor) -> Tensor:
        prior = F.interpolate(self.prior[None, None], logits.shape[-2:], mode="bilinear", align_corners=False)
        return logits + prior[0]


class _Decoder(nn.Module):
    """Feature maps of several depths joined at the finest one's resolution."""

    def __init__(self, channels: tuple[int, ...], width: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in channels)
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.dropout = nn.Dropout2d(dropout)
        self.blocks = nn.ModuleList(_block(width) for _ in range(3))

    def forward(self, features: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        size = features[0].shape[-2:]
        joined = torch.zeros(())
        for feature, norm, lateral in zip(features, self.norms, self.laterals, strict=True):
            lateral_map = lateral(self.dropout(norm(feature)))
            joined = joined + F.interpolate(lateral_map, size, mode="bilinear", align_corners=False)
        for block in self.blocks:
            joined = joined + block(joined)
        return joined


class _Head(nn.Module):
    """Features to a map of twice their resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(F.relu(x)), 2)[:, 0]


def _block(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 1),
    )


def _change(features: Tensor, clips: torch.Size) -> Tensor:
    """Difference to the frame before (the first frame: to the one after), (B * F, C, h, w)."""
    features = features.unflatten(0, clips)
    change = features[:, 1:] - features[:, :-1]
    return torch.cat((-change[:, :1], change), 1).flatten(0, 1)
