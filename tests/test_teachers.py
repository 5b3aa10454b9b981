"""The published teachers: the .vxm reader, the networks on the real files, and what is said of wrong files."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from salcap.datasets.captioned_images import iter_density_maps
from salcap.distill.map_cache import predict_density
from salcap.frames import Frames
from salcap.saliency import create_saliency, list_saliency
from salcap.saliency.teachers.fastgaze import FastGaze, GaussianBlur
from salcap.saliency.teachers.vxm import Blur, Convolution, MaxPooling, read_vxm

RANDOM = np.random.default_rng(0)
WEIGHT_0 = RANDOM.normal(0, 0.05, (4, 3, 3, 3)).astype(np.float32)
WEIGHT_2 = RANDOM.normal(0, 0.3, (1, 4, 1, 1)).astype(np.float32)
BIAS_0, BIAS_2 = np.float32([0.1, -0.2, 0.3, 0.0]), np.float32([-0.4])


def u32(*values):
    return struct.pack(f"<{len(values)}I", *values)


def tiny_entries() -> dict[str, bytes]:
    """Convolution, pooling by 2, leaky convolution, blur."""
    entries = {"layerCount": u32(4), "modelType": u32(2), "1Type": u32(2), "1Pool": u32(2)}
    entries |= {"3Type": u32(3), "3KernelSize": u32(5), "3Std": u32(1)}
    for number, weight, bias in (("0", WEIGHT_0, BIAS_0), ("2", WEIGHT_2, BIAS_2)):
        entries |= {f"{number}Type": u32(0), f"{number}w": weight.tobytes(), f"{number}b": bias.tobytes()}
        entries |= {f"{number}w.shape": u32(*weight.shape), f"{number}b.shape": u32(*bias.shape)}
        entries |= {f"{number}w.dtype": b"float32", f"{number}b.dtype": b"float32"}
    alpha = {"2alpha": np.float32(0.25).tobytes(), "2alpha.dtype": b"float32"}
    return entries | alpha | {"0Act": u32(1), "2Act": u32(4)}


def pack(entries: dict[str, bytes]) -> bytes:
    """The container as its description has it."""
    body = b""
    for key, value in sorted(entries.items()):
        body += u32(len(key) + 1) + key.encode() + b"\0" + u32(len(value)) + value
    return b"\x01tPM" + u32(len(entries)) + body


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.vxm"
    path.write_bytes(pack(tiny_entries()))
    return path


@pytest.fixture
def teachers(shared, monkeypatch):
    """The folder of the real files, found by the environment."""
    folder = shared / "data" / "saliency" / "teachers"
    monkeypatch.setenv("SALCAP_WEIGHTS", str(folder))
    return folder


def draw_pixels(num_frames, height, width):
    generator = torch.Generator().manual_seed(num_frames)
    return torch.randint(0, 256, (num_frames, 3, height, width), generator=generator, dtype=torch.uint8)


# --- the .vxm reader ---


def test_read_vxm_gives_the_layers_in_order(tiny):
    first, pooling, second, blur = read_vxm(tiny)
    assert isinstance(first, Convolution)
    assert isinstance(second, Convolution)
    assert (pooling, blur) == (MaxPooling(2), Blur(5, 1))
    assert (first.negative_slope, second.negative_slope) == (0.0, 0.25)
    for layer, weight, bias in ((first, WEIGHT_0, BIAS_0), (second, WEIGHT_2, BIAS_2)):
        assert np.array_equal(layer.weight, weight)
        assert np.array_equal(layer.bias, bias)


def test_the_real_file_is_the_network_of_its_description(teachers):
    layers = read_vxm(teachers / "fastgaze" / "fastgaze.vxm")
    channels = [layer.weight.shape[0] for layer in layers if isinstance(layer, Convolution)]
    assert channels == [43, 44, 49, 56, 44, 38, 31, 20, 18, 10, 7, 7, 2, 1]
    slopes = [layer.negative_slope for layer in layers if isinstance(layer, Convolution)]
    assert slopes == pytest.approx([0.0] * 10 + [0.27468568, 0.27127689, 0.37410617, 0.38936543])
    assert [number for number, layer in enumerate(layers) if layer == MaxPooling(2)] == [2, 5, 8, 11]
    assert layers[18] == Blur(19, 3)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\x89PNG" + bytes(20), r"is no .vxm file: it begins with b'\\x89PNG'"),
        (b"", "truncated at byte 0: the magic needs 4 bytes, 0 are left"),
        (pack(tiny_entries())[:-3], "truncated at byte .*: the value of 'modelType' needs 4 bytes, 1 are left"),
        (pack(tiny_entries())[:300], "truncated at byte .*the value of '0w' needs 432 bytes"),
        (pack(tiny_entries()) + b"12", "2 bytes follow the last entry at byte"),
        (b"\x01tPM" + u32(1) + u32(2**32 - 1), "truncated at byte 12: the key of entry 0 needs 4294967295 bytes"),
        (b"\x01tPM" + u32(1) + u32(3) + b"abc" + u32(0), "entry 0 at byte 8 has key b'abc', expected .* final NUL"),
        (b"\x01tPM" + u32(2) + 2 * (u32(2) + b"a\0" + u32(0)), "entry 1 at byte 18 has key"),
        (b"\x01tPM" + u32(0), "no entry 'layerCount'"),
    ],
)
def test_read_vxm_fails_naming_the_place(tmp_path, content, message):
    path = tmp_path / "bad.vxm"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as info:
        read_vxm(path)
    assert str(path) in str(info.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layerCount": u32(0)}, "layerCount is 0"),
        ({"layerCount": u32(9)}, "no entry '4Type'"),
        ({"1Type": u32(1)}, "1Type is 1, known: 0"),
        ({"1Pool": u32(0)}, "1Pool must be at least 1, got 0"),
        ({"3KernelSize": u32(4)}, "3KernelSize must be odd, got 4"),
        ({"3Std": b"\1"}, "the value of '3Std' has 1 bytes, expected 4"),
        ({"0Act": u32(2)}, "0Act is 2, known: 1"),
        ({"0b": BIAS_0[:3].tobytes(), "0b.shape": u32(3)}, "0b has 3 values for the 4 channels of 0w"),
        ({"0w.shape": u32(6, 3, 3, 2)}, "0w has kernels of 3x2"),
        ({"0w.shape": u32(4, 3, 0, 0)}, r"0w.shape is \(4, 3, 0, 0\)"),
        ({"0w.shape": u32(5, 3, 3, 3)}, "the value of '0w' has 432 bytes, expected 540"),
        ({"0w.dtype": b"float16"}, "0w.dtype is b'float16'"),
        ({"2b": np.float32([np.nan]).tobytes()}, "2b holds values that are not finite"),
        ({"layerCount": u32(1)}, "the last layer gives 4 maps, expected 1"),
        ({"2w": WEIGHT_2[:, :2].tobytes(), "2w.shape": u32(1, 2, 1, 1)}, "layer 2 takes 2 channels, .* gives 4"),
    ],
)
def test_read_vxm_fails_naming_the_entry(tmp_path, changes, message):
    path = tmp_path / "bad.vxm"
    path.write_bytes(pack(tiny_entries() | changes))
    with pytest.raises(ValueError, match=message) as info:
        read_vxm(path)
    assert str(path) in str(info.value)


# --- fastgaze ---


def test_fastgaze_runs_the_layers_of_its_file(tiny):
    model = create_saliency("fastgaze", path=tiny, size=(6, 10))
    pixels = draw_pixels(2, 6, 10)
    images = pixels.flip(1).float() - torch.tensor([103.939, 116.779, 123.68])[:, None, None]
    maps = F.relu(F.conv2d(images, torch.tensor(WEIGHT_0), torch.tensor(BIAS_0), padding=1))
    maps = F.leaky_relu(F.conv2d(F.max_pool2d(maps, 2), torch.tensor(WEIGHT_2), torch.tensor(BIAS_2)), 0.25)
    taps = np.exp(-(np.arange(-2, 3) ** 2) / 2)
    kernel = torch.tensor(np.outer(taps, taps) / taps.sum() ** 2, dtype=torch.float32)
    maps = F.conv2d(F.pad(maps, (2, 2, 2, 2), mode="replicate"), kernel[None, None])
    expected = maps.flatten(1).log_softmax(1).view(2, 3, 5)
    torch.testing.assert_close(model.predict(pixels, "native"), expected)
    torch.testing.assert_close(model.predict(pixels[1:], "native"), expected[1:])
    assert sum(weight.numel() for weight in model.parameters()) == 108 + 4 + 4 + 1


def test_blur_keeps_what_is_constant():
    blur = GaussianBlur(19, 3.0)
    torch.testing.assert_close(blur(torch.full((2, 3, 5, 40), 7.0)), torch.full((2, 3, 5, 40), 7.0))


@pytest.mark.parametrize("size", [(7, 10), (0, 10), (6, 1)])
def test_fastgaze_fails_on_sizes_that_cannot_be_pooled(tiny, size):
    with pytest.raises(ValueError, match=r"in multiples of 2, got"):
        FastGaze(tiny, size)


@pytest.mark.parametrize("name, size", [("fastgaze", (32, 48)), ("glimpse", None)])
def test_real_networks_keep_the_contract(teachers, name, size):
    if name == "glimpse":
        pytest.importorskip("ai_edge_litert")
    model = create_saliency(name, **({"size": size} if size else {}))
    for height, width in ((1, 1), (5, 400), (60, 44)):
        pixels = draw_pixels(3, height, width)
        together = model.predict(pixels)
        assert together.shape == (3, height, width)
        torch.testing.assert_close(together.exp().sum((1, 2)), torch.ones(3), rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.cat([model.predict(frame[None]) for frame in pixels]), together)
    blank = model.predict(torch.full((1, 3, 30, 40), 128, dtype=torch.uint8))
    assert bool(torch.isfinite(blank).all())
    half = model.to(torch.bfloat16).predict(pixels)
    torch.testing.assert_close(half.exp().sum((1, 2)), torch.ones(3), rtol=0, atol=1e-4)


# --- LiteRT ---


def test_importing_the_backbones_imports_no_teacher():
    heavy = "{'ai_edge_litert', 'onnxruntime', 'salcap.saliency.teachers.fastgaze', 'transformers'}"
    probe = f"import sys, salcap.saliency; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", probe], check=True, cwd=Path(__file__).resolve().parents[1])


def test_teachers_are_listed_and_need_their_extra(teachers, monkeypatch):
    assert {"attention_center", "fastgaze", "glimpse"} <= set(list_saliency())
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    for name in ("attention_center", "glimpse"):
        with pytest.raises(ImportError, match=r"needs ai-edge-litert: pip install salcap\[litert\]"):
            create_saliency(name)


def test_litert_teachers_fail_on_other_files(teachers, tmp_path):
    pytest.importorskip("ai_edge_litert")
    glimpse = (teachers / "glimpse" / "model.tflite").read_bytes()
    for content, message in (
        (b"no network at all", "is no .tflite file: bytes 4 to 8 are"),
        (glimpse[:50_000], "cannot be read by LiteRT"),
        (glimpse, "no tensor 'Sum'"),
    ):
        (tmp_path / "center.tflite").write_bytes(content)
        with pytest.raises(ValueError, match=message) as info:
            create_saliency("attention_center", path=tmp_path)
        assert str(tmp_path / "center.tflite") in str(info.value)
    with pytest.raises(ValueError, match=r"must have input 'input.1' float32 \(1, 3, 176, 176\), it has"):
        create_saliency("glimpse", path=teachers / "attention_center" / "center.tflite")


@pytest.mark.parametrize("name", ["attention_center", "glimpse"])
def test_temperature_flattens(teachers, name):
    pytest.importorskip("ai_edge_litert")
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        create_saliency(name, temperature=0.0)
    if name == "glimpse":
        pixels = draw_pixels(1, 40, 40)
        sharp, flat = (create_saliency(name, temperature=t).predict(pixels, "native") for t in (0.25, 0.5))
        torch.testing.assert_close(flat, (sharp / 2).flatten(1).log_softmax(1).view_as(flat), rtol=0, atol=1e-4)


def test_a_litert_teacher_can_be_pickled(teachers):
    pytest.importorskip("ai_edge_litert")
    model, pixels = create_saliency("glimpse"), draw_pixels(1, 40, 40)
    assert torch.equal(pickle.loads(pickle.dumps(model)).predict(pixels), model.predict(pixels))


# --- against stored results ---


def test_attention_center_gives_the_maps_that_were_computed_before(teachers, shared):
    """Made by other code from the same file, with PIL's resizing, which rounds to 8 bits; stored in 8 bits."""
    pytest.importorskip("ai_edge_litert")
    model = create_saliency("attention_center")
    folder = shared / "data" / "captions" / "flickr8k"
    maps = iter_density_maps(folder / "attention_center_maps")
    for (name, stored), _ in zip(maps, range(3), strict=False):
        pixels = np.array(Image.open(folder / "images" / name).convert("RGB")).transpose(2, 0, 1)
        density = predict_density(model, Frames(torch.from_numpy(pixels)[None], torch.zeros(1)), (60, 80))[0].numpy()
        assert 0.5 * np.abs(density - stored).sum() < 0.02
        assert np.corrcoef(density.ravel(), stored.ravel())[0, 1] > 0.9995


@pytest.mark.parametrize(
    "name, images, nss",
    [  # of single images: 0.5 to 6.5; on 70 of them attention_center has 2.33 to 2.58, the others 1.67 to 1.83
        ("attention_center", ["1001.jpg", "1258.jpg", "1301.jpg"], 2.29),
        ("fastgaze", ["1072.jpg", "1322.jpg"], 1.66),
        ("glimpse", [f"{number}.jpg" for number in range(1001, 1501, 43)], 1.7),
    ],
)
def test_teachers_predict_where_people_look(teachers, shared, name, images, nss):
    if name != "fastgaze":
        pytest.importorskip("ai_edge_litert")
    folder = shared / "data" / "saliency" / "osie"
    with gzip.open(folder / "fixations.json.gz") as file:
        fixations = json.load(file)["fixations"]
    model, scores = create_saliency(name), []
    for image in images:
        pixels = np.asarray(Image.open(folder / "images" / image).convert("RGB"))[None]
        density = model.predict(pixels, (600, 800))[0].exp().double()
        x, y = np.array([point[:2] for subject in fixations[image] for point in subject]).astype(int).T
        inside = (x >= 0) & (x < 800) & (y >= 0) & (y < 600)
        standard = (density - density.mean()) / density.std(correction=0)
        scores.append(float(standard[y[inside], x[inside]].mean()))
    assert float(np.mean(scores)) == pytest.approx(nss, abs=0.02)
