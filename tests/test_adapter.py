"""A user's own network as a backbone: torch modules, ONNX files, and factories in a Python file."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from salcap.saliency import (
    OnnxSaliency,
    TorchSaliency,
    check_registered_name,
    create_saliency,
    register_saliency,
    registry,
)
from salcap.saliency.adapter import OUTPUTS, to_log_density


class Probe(nn.Module):
    """Returns what ``answer`` makes of the images, and keeps them."""

    def __init__(self, answer=lambda images: images.mean(1)) -> None:
        super().__init__()
        self.answer, self.seen = answer, []

    def forward(self, images):
        self.seen.append(images)
        return self.answer(images)


def draw_pixels(num_frames=2, height=12, width=20):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (num_frames, 3, height, width), generator=generator, dtype=torch.uint8)


# --- what the network's output means ---


@pytest.mark.parametrize("output", OUTPUTS)
def test_outputs_become_the_density_they_stand_for(output):
    expected = torch.tensor([[[0.1, 0.2], [0.3, 0.4]], [[0.7, 0.1], [0.1, 0.1]]])
    maps = {
        "log_density": expected.log() + 5,
        "density": expected * 300,
        "probability": expected * 0.5,
        "logits": torch.logit(expected * 0.5),
    }[output]
    log_density = to_log_density(maps, output)
    torch.testing.assert_close(log_density.flatten(1).softmax(1).view_as(expected), expected)
    model = TorchSaliency(Probe(lambda images: maps[:, None]), output=output)
    torch.testing.assert_close(model.predict(draw_pixels(), "native").exp(), expected)


@pytest.mark.parametrize("output", ["density", "probability"])
def test_zeros_are_a_millionth_of_the_peak(output):
    log_density = to_log_density(torch.tensor([[[0.5, 0.0, 1e-9]], [[0.0, 0.0, 0.0]]]), output)
    torch.testing.assert_close(log_density[0].exp(), torch.tensor([[1.0, 1e-6, 1e-6]]))
    assert torch.equal(log_density[1], torch.zeros(1, 3))


def test_impossible_pixels_of_a_log_density_stay_impossible():
    maps = torch.tensor([[[0.0, -float("inf")]]])
    assert to_log_density(maps, "log_density") is maps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rounding_beyond_the_range_is_taken_as_its_end(dtype):
    eps = torch.finfo(dtype).eps
    exact = torch.tensor([[[1.0, 0.5, 0.0]]], dtype=dtype)
    rounded = torch.tensor([[[1.0 + eps, 0.5, -eps / 2]]], dtype=dtype)
    assert torch.equal(to_log_density(rounded, "probability"), to_log_density(exact, "probability"))
    rounded[0, 0, 0] = 1.0
    for scale in (1, 64):
        assert torch.equal(to_log_density(scale * rounded, "density"), to_log_density(scale * exact, "density"))


def test_a_sigmoid_enlarged_by_bicubic_interpolation_is_a_probability():
    def answer(images):
        return F.interpolate(torch.ones(len(images), 1, 14, 14), (100, 177), mode="bicubic", align_corners=False)

    assert answer([0]).max() > 1  # by rounding
    log_density = TorchSaliency(Probe(answer), output="probability").predict(draw_pixels(), "native")
    torch.testing.assert_close(log_density.exp(), torch.full((2, 100, 177), 1 / 17700))


@pytest.mark.parametrize(
    "output, value, message",
    [
        ("density", -0.1, "must be finite and not below 0 .*, got values from -0.1"),
        ("density", float("nan"), "got values from nan"),
        ("density", float("inf"), "to inf"),
        ("probability", 1.5, r"must be 0..1 \(give or take 0.001 for rounding\), got values from 0 to 1.5"),
        ("probability", 1.0011, "to 1.00109994"),
        ("probability", -0.0011, "got values from -0.00109"),
        ("probabilities", 0.5, "unknown output 'probabilities', allowed: .*; did you mean 'probability'"),
    ],
)
def test_to_log_density_fails_on_values_out_of_range(output, value, message):
    with pytest.raises(ValueError, match=message):
        to_log_density(torch.tensor([[[0.0, value]]]), output)


@pytest.mark.parametrize(
    "answer, message",
    [
        (lambda images: images, r"must return \(2, h, w\) or \(2, 1, h, w\), got \(2, 3, 12, 20\)"),
        (lambda images: images[:1, 0], r"got \(1, 12, 20\)"),
        (lambda images: (images[:, 0],), "one tensor of maps, got tuple"),
        (lambda images: {"map": images[:, 0]}, "one tensor of maps, got dict"),
    ],
)
def test_predict_fails_naming_the_shape_it_needs(answer, message, monkeypatch):
    monkeypatch.setattr(registry, "_factories", registry._factories.copy())
    register_saliency("mine", lambda: TorchSaliency(Probe(answer)))
    with pytest.raises(ValueError, match=f"'mine'.*{message}"):
        create_saliency("mine").predict(draw_pixels())


# --- what the network sees ---


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(9, 31), (60, 50)])
def test_frames_are_stretched_as_pil_does(interpolation, size):
    pixels = draw_pixels(1, 36, 48) // 2 + 64  # without clipping: PIL clips between its two passes too
    network = Probe()
    TorchSaliency(network, size, max_value=255.0, interpolation=interpolation).predict(pixels)
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    expected = np.asarray(image.resize(size[::-1], getattr(Image.Resampling, interpolation.upper())), np.float32)
    assert np.abs(network.seen[0][0].permute(1, 2, 0).numpy() - expected).max() < 1.5  # PIL rounds twice


def test_frames_are_normalised_as_asked():
    pixels = draw_pixels()
    rgb, bgr = Probe(), Probe()
    mean, std = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    TorchSaliency(rgb, mean=mean, std=std).predict(pixels)
    TorchSaliency(bgr, mean=[100.0, 110.0, 120.0], max_value=255.0, channel_order="bgr").predict(pixels)
    column = torch.tensor([mean, std])[..., None, None]
    torch.testing.assert_close(rgb.seen[0], (pixels / 255 - column[0]) / column[1])
    torch.testing.assert_close(
        bgr.seen[0], pixels.flip(1) - torch.tensor([100.0, 110.0, 120.0])[:, None, None], rtol=0, atol=1e-4
    )


def test_prediction_trains_nothing():
    norm, drop = nn.BatchNorm2d(3), nn.Dropout(0.5)
    frozen = nn.BatchNorm2d(3).eval()
    model, pixels = TorchSaliency(nn.Sequential(norm, frozen, nn.Conv2d(3, 1, 1), drop)), draw_pixels()
    before = norm.running_mean.clone()
    assert torch.equal(model.predict(pixels), model.predict(pixels))
    assert torch.equal(norm.running_mean, before)
    assert (model.training, norm.training, frozen.training) == (True, True, False)  # each as it was


def test_long_clips_are_split_without_a_trace():
    whole, parts = Probe(), Probe()
    pixels = draw_pixels(5)
    expected = TorchSaliency(whole, (6, 8)).predict(pixels)
    assert torch.equal(TorchSaliency(parts, (6, 8), frames_per_pass=2).predict(pixels), expected)
    assert [len(images) for images in parts.seen] == [2, 2, 1]
    assert [len(images) for images in whole.seen] == [5]


def test_a_module_gets_frames_in_its_own_dtype_and_can_be_moved_and_trained():
    network = nn.Conv2d(3, 1, 3, padding=1).to(torch.bfloat16)
    model = TorchSaliency(network)
    assert model.predict(draw_pixels()).dtype == torch.float32
    model.to(torch.float32)
    loss = model(draw_pixels() / 255).square().mean()
    loss.backward()
    assert float(network.weight.grad.abs().sum()) > 0
    assert len(list(model.parameters())) == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"output": "map"}, "unknown output 'map'"),
        ({"channel_order": "rbg"}, "did you mean 'rgb'"),
        ({"interpolation": "nearest"}, "allowed: bilinear, bicubic"),
        ({"size": (0, 5)}, r"size must be \(height, width\)"),
        ({"mean": [1.0, 2.0]}, "mean must be one value or three"),
        ({"std": 0.0}, "std must be above 0"),
        ({"max_value": 0.0}, "must be above 0"),
        ({"frames_per_pass": 0}, "must be above 0"),
    ],
)
def test_settings_out_of_range_fail(options, message):
    with pytest.raises(ValueError, match=message):
        TorchSaliency(Probe(), **options)


def test_torch_saliency_fails_without_a_module():
    with pytest.raises(ValueError, match=r"must be a torch.nn.Module, got function"):
        TorchSaliency(lambda images: images)


# --- ONNX ---


@pytest.fixture
def write_onnx(tmp_path):
    """A function that writes a network ``mean over channels`` and returns its path."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")

    def write(shape, axis=1, kind=onnx.TensorProto.FLOAT, inputs=("image",)):
        nodes = [onnx.helper.make_node("Sum", list(inputs), ["sum"])] if len(inputs) > 1 else []
        start = "sum" if nodes else inputs[0]
        nodes.append(onnx.helper.make_node("ReduceMean", [start, "axes"], ["map"], keepdims=0))
        nodes.append(onnx.helper.make_node("Neg", ["map"], ["dark"]))
        nodes.append(onnx.helper.make_node("ArgMax", [start], ["classes"], axis=axis, keepdims=0))
        graph = onnx.helper.make_graph(
            nodes,
            "mean",
            [onnx.helper.make_tensor_value_info(name, kind, shape) for name in inputs],
            [
                *(onnx.helper.make_tensor_value_info(name, kind, None) for name in ("map", "dark")),
                onnx.helper.make_tensor_value_info("classes", onnx.TensorProto.INT64, None),
            ],
            [onnx.helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [axis])],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
        path = tmp_path / "net.onnx"
        onnx.save(model, path)
        return path

    return write


@pytest.mark.parametrize(
    "shape, axis, size, frames_per_pass",
    [
        (["n", 3, "h", "w"], 1, None, 16),
        (["n", 3, "h", "w"], 1, (10, 14), 16),
        (["n", 3, 10, 14], 1, None, 16),
        ([1, 3, 10, 14], 1, (10, 14), 1),
        (["n", "h", "w", 3], 3, (10, 14), 16),
        ([1, 10, 14, 3], 3, None, 1),
    ],
)
def test_an_onnx_file_predicts_as_its_torch_twin(write_onnx, shape, axis, size, frames_per_pass):
    model = OnnxSaliency(write_onnx(shape, axis), size, std=0.2)
    assert model.frames_per_pass == frames_per_pass
    twin = TorchSaliency(Probe(), model.size, std=0.2)
    pixels = draw_pixels(3)
    torch.testing.assert_close(model.predict(pixels), twin.predict(pixels))
    torch.testing.assert_close(pickle.loads(pickle.dumps(model)).predict(pixels), twin.predict(pixels))
    native = (12, 20) if model.size is None else (10, 14)
    assert model.predict(pixels, "native").shape == (3, *native)


def test_an_onnx_file_of_half_precision_and_another_output(write_onnx):
    onnx = pytest.importorskip("onnx")
    model = OnnxSaliency(write_onnx(["n", 3, "h", "w"], kind=onnx.TensorProto.FLOAT16), output_name="dark")
    twin = TorchSaliency(Probe(lambda images: -images.mean(1)))
    torch.testing.assert_close(model.predict(draw_pixels()), twin.predict(draw_pixels()), rtol=0, atol=2e-3)


def test_onnx_saliency_fails_naming_what_does_not_fit(write_onnx, tmp_path):
    with pytest.raises(ValueError, match=r"takes images of \(height, width\) \(10, 14\), got size \(5, 14\)"):
        OnnxSaliency(write_onnx(["n", 3, 10, 14]), (5, 14))
    with pytest.raises(ValueError, match="did you mean 'dark'"):
        OnnxSaliency(write_onnx(["n", 3, 10, 14]), output_name="darc")
    for shape in ([2, 3, 10, 14], ["n", 4, 10, 14], ["n", 3, 10]):
        with pytest.raises(ValueError, match=r"takes image tensor.float.*allowed: one float input"):
            OnnxSaliency(write_onnx(shape))
    with pytest.raises(ValueError, match=r"takes image .*, other .*allowed: one float input"):
        OnnxSaliency(write_onnx(["n", 3, 10, 14], inputs=("image", "other")))
    with pytest.raises(ValueError, match=r"net.onnx must .* floating point maps, got int64"):
        OnnxSaliency(write_onnx(["n", 3, 10, 14]), output_name="classes").predict(draw_pixels())
    with pytest.raises(ValueError, match="no ONNX file"):
        OnnxSaliency(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ValueError, match=r"text.onnx cannot be run by onnxruntime"):
        OnnxSaliency(tmp_path / "text.onnx")


def test_onnx_saliency_fails_without_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install salcap\[onnx\]"):
        OnnxSaliency("net.onnx")


# --- a user's own file ---


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "my models.py"
    path.write_text(
        "import torch\n"
        "from dataclasses import dataclass\n"
        "from salcap.saliency import TorchSaliency\n"
        "@dataclass\n"
        "class Settings:\n"
        "    gain: float = 1.0\n"
        "class Red(torch.nn.Module):\n"
        "    def __init__(self, gain):\n"
        "        super().__init__()\n"
        "        self.gain = torch.nn.Parameter(torch.tensor(gain))\n"
        "    def forward(self, images):\n"
        "        return images[:, 0] * self.gain\n"
        "def make_red(gain=1.0):\n"
        "    return TorchSaliency(Red(Settings(gain).gain), size=(6, 8))\n"
        "number = 3\n"
    )
    return path


def test_a_backbone_comes_from_a_file(user_file, monkeypatch):
    name = f"{user_file}:make_red"
    model = create_saliency(name, gain=3.0)
    pixels = draw_pixels()
    expected = TorchSaliency(Probe(lambda images: 3 * images[:, 0]), (6, 8)).predict(pixels)
    torch.testing.assert_close(model.predict(pixels), expected)
    assert model.name == name
    assert not model.training
    torch.testing.assert_close(pickle.loads(pickle.dumps(model)).predict(pixels), expected)
    monkeypatch.chdir(user_file.parent)
    torch.testing.assert_close(create_saliency("my models.py:make_red", gain=3.0).predict(pixels), expected)


def test_create_saliency_fails_with_the_reason_of_a_file(user_file):
    with pytest.raises(ValueError, match="no function or class 'make_rad'; did you mean 'make_red'"):
        create_saliency(f"{user_file}:make_rad")
    with pytest.raises(ValueError, match="no function or class 'number'"):
        create_saliency(f"{user_file}:number")
    with pytest.raises(ValueError, match=r"there is no file .*missing.py"):
        create_saliency(f"{user_file.with_name('missing.py')}:make")
    with pytest.raises(TypeError, match=r"must make a SaliencyModel, got Settings"):
        create_saliency(f"{user_file}:Settings")
    with pytest.raises(TypeError, match="gian"):
        create_saliency(f"{user_file}:make_red", gian=1.0)
    user_file.write_text("def fails(): return 1 / 0")
    with pytest.raises(ValueError, match="cannot be made: ZeroDivisionError: division by zero"):
        create_saliency(f"{user_file}:fails")
    user_file.write_text("import a_package_that_is_not_there")
    with pytest.raises(ValueError, match=r"is unavailable: ModuleNotFoundError: .*a_package_that_is_not_there") as info:
        create_saliency(f"{user_file}:make_red")
    assert isinstance(info.value.__cause__, ModuleNotFoundError)


def test_a_downloaded_model_cannot_name_a_file(user_file):
    assert check_registered_name("uniform") == "uniform"
    with pytest.raises(ValueError, match="only you can name it"):
        check_registered_name(f"{user_file}:make_red")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_maps_of_whole_numbers_are_refused(dtype):
    with pytest.raises(ValueError, match="maps must be floating point"):
        to_log_density(torch.tensor([[[0, 1]]]).to(dtype), "density")
