"""The student on its runtimes, the 8-bit resize in front of it, and its exported files."""

from __future__ import annotations

import copy
import json
import pickle
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from salcap.cli import app
from salcap.frames import Frames
from salcap.saliency import OnnxSaliency, SaliencyModel, create_saliency, export, normalise_log_density, runtimes
from salcap.saliency.model import shrink_frames
from salcap.saliency.runtimes import RUNTIMES, FastUvaNet, installed_runtimes, open_onnx, open_openvino
from salcap.saliency.trainable import load_trained
from salcap.saliency.uva_net import UvaNet

PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}
NAMED = ("torch", "onnx", "openvino")
TINY = {"widths": (8, 8, 16, 16), "depths": (1, 1, 1)}


def require(runtime):
    for package in PACKAGES.get(runtime, ()):
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Students whose BatchNorms, prior and maps are far from those of a fresh network."""
    folders = {}
    for name, size in (("uva_net", 64), ("uva_net_32", 32)):
        torch.manual_seed(size)
        model = UvaNet(image_size=size, **TINY).train()
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.5)
            model.prior.normal_()
            for _ in range(10):
                model.streams(torch.rand(2, 4, 3, size, size), torch.arange(4.0).expand(2, 4))
        folders[name] = tmp_path_factory.mktemp(name)
        model.eval().save_pretrained(folders[name])
    return folders


@pytest.fixture
def student(checkpoints):
    def load(runtime="auto", name="uva_net"):
        require(runtime)
        return create_saliency(name, checkpoint=checkpoints[name], runtime=runtime)

    return load


@pytest.fixture
def plain(checkpoints):
    return UvaNet.from_pretrained(checkpoints["uva_net"])


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def draw_frames(count, height=80, width=100, start=0.0):
    """A clip of blurred noise, unevenly spaced."""
    generator = torch.Generator().manual_seed(count)
    noise = torch.rand(count, 3, 9, 11, generator=generator) * 255
    pixels = F.interpolate(noise, (height, width), mode="bicubic").clamp(0, 255).to(torch.uint8)
    return Frames(pixels, start + torch.arange(count).double() ** 1.1 * 0.2)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


# --- the same maps in every runtime ---


@pytest.mark.parametrize("runtime", NAMED)
@pytest.mark.parametrize("name, threads", [("uva_net", 2), ("uva_net_32", 1)])
def test_every_runtime_gives_the_networks_maps(student, checkpoints, set_threads, runtime, name, threads):
    set_threads(threads)
    fast, plain = student(runtime, name), UvaNet.from_pretrained(checkpoints[name])
    for count in (3, 1, 2, 8, 71):
        clip = draw_frames(count, start=5000.0)  # late, where float32 would blur the gaps
        still, moving = fast.predict(clip.pixels, "native"), fast.predict(clip, "native")
        close(still, plain.predict(clip.pixels, "native"))
        close(moving, plain.predict(clip, "native"))
        assert (float((moving - still).abs().max()) > 0.01) == (count > 1)


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_runtime_runs_without_torch_and_converts_once(student, monkeypatch, tmp_path, runtime):
    fast, clip = student(runtime), draw_frames(4)
    monkeypatch.chdir(tmp_path)
    expected = fast.predict(clip), fast.predict(clip.pixels)
    monkeypatch.setattr(UvaNet, "streams", None)
    monkeypatch.setattr(runtimes, "to_onnx", None)
    assert torch.equal(fast.predict(clip), expected[0])
    assert torch.equal(fast.predict(clip.pixels), expected[1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (64, 64)])
def test_frames_of_any_size_are_taken(student, plain, size):
    pixels = draw_frames(2, *size).pixels
    maps = student().predict(pixels)
    assert maps.shape == (2, *size)
    close(maps, plain.predict(pixels))


def test_the_fastest_that_is_installed_is_chosen(student, monkeypatch):
    chosen = []
    monkeypatch.setattr(runtimes, "open_openvino", lambda model, workers: chosen.append("openvino"))
    monkeypatch.setattr(runtimes, "open_onnx", lambda model: chosen.append("onnx"))
    pixels = draw_frames(1).pixels
    for package in ("openvino", "onnxruntime"):
        pytest.importorskip(package)
        with pytest.raises(TypeError):  # the stand-in is no network
            student().predict(pixels)
        monkeypatch.setitem(sys.modules, package, None)
    assert chosen == ["openvino", "onnx"]
    assert installed_runtimes() == ("torch",)
    student().predict(pixels)
    assert chosen == ["openvino", "onnx"]


# --- a model like any other ---


@pytest.mark.parametrize("runtime", NAMED)
def test_new_weights_are_seen(student, runtime):
    fast, clip = student(runtime), draw_frames(3)
    before = fast.predict(clip)
    torch.manual_seed(9)
    other = UvaNet(**TINY).eval()
    fast.load_state_dict(other.state_dict())
    close(fast.predict(clip), other.predict(clip))
    assert float((fast.predict(clip) - before).abs().max()) > 0.1


@pytest.mark.parametrize("runtime", ["torch", "auto"])
def test_other_precisions_run_in_torch(student, plain, runtime):
    fast, clip = student(runtime), draw_frames(3)
    expected = fast.predict(clip, "native")
    half = fast.to(torch.bfloat16).predict(clip, "native")
    assert half.dtype == torch.float32
    assert 1e-3 < float((half - expected).abs().max()) < 0.5
    rounded = plain.to(torch.bfloat16)
    torch.testing.assert_close(half, rounded.predict(clip, "native"), rtol=0, atol=0.2)
    close(fast.float().predict(clip, "native"), rounded.float().predict(clip, "native"))


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize("place", [torch.bfloat16, torch.float64, "meta"])
def test_a_named_runtime_fails_elsewhere(student, runtime, place):
    fast = student(runtime)
    expected = fast.predict(draw_frames(1))
    with pytest.raises(ValueError, match=rf"'{runtime}' runs on the CPU in float32, got .*: runtime 'auto' or 'torch'"):
        fast.to(place)
    assert torch.equal(fast.to("cpu").predict(draw_frames(1)), expected)
    with pytest.raises(ValueError, match="runs on the CPU in float32"):
        student("torch").to(place).use_runtime(runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_gradients_go_through_the_network(student, plain, runtime):
    pixels = torch.rand(2, 3, 64, 64, requires_grad=True)
    fast = student(runtime)
    maps = fast(pixels)
    close(maps, plain(pixels))
    maps.sum().backward()
    assert float(pixels.grad.abs().sum()) > 0
    assert fast.stem[0].conv.weight.grad is not None
    with torch.no_grad():
        in_training = fast.train()(pixels)
    assert float((in_training - maps.detach()).abs().max()) > 1e-3  # BatchNorm reads the batch


@pytest.mark.parametrize("runtime", NAMED)
def test_it_can_be_copied_pickled_and_saved(student, plain, runtime, tmp_path):
    fast, clip = student(runtime), draw_frames(5)
    expected = fast.predict(clip)
    twin = pickle.loads(pickle.dumps(fast))
    assert isinstance(twin, FastUvaNet)
    assert twin.runtime == copy.deepcopy(fast).runtime == runtime
    assert torch.equal(twin.predict(clip), expected)
    fast.save_pretrained(tmp_path)
    again = UvaNet.from_pretrained(tmp_path)
    assert again.state_dict().keys() == plain.state_dict().keys()
    close(again.predict(clip), expected)


def test_loading_prints_nothing(checkpoints, capsys):
    assert isinstance(load_trained("uva_net", checkpoints["uva_net"]), SaliencyModel)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("runtime, hint", [("openvin", "did you mean 'openvino'"), ("ONNX", "allowed: auto, torch")])
def test_unknown_runtimes_fail(student, runtime, hint):
    with pytest.raises(ValueError, match=f"unknown runtime '{runtime}', .*{hint}"):
        student(runtime)


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_runtime_that_is_not_installed_fails(checkpoints, monkeypatch, tmp_path, runtime):
    model = create_saliency("uva_net", checkpoint=checkpoints["uva_net"])
    for package in PACKAGES[runtime]:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(ImportError, match=rf"{runtime} needs .*{package}.*: pip install salcap\[{runtime}\]"):
                create_saliency("uva_net", checkpoint=checkpoints["uva_net"], runtime=runtime)
            with pytest.raises(ImportError, match=rf"pip install salcap\[{runtime}\]"):
                export.export_student(model, tmp_path / f"a{export.SUFFIXES[runtime]}", runtime)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("runtime, tolerance", [("torch", 1e-3), ("auto", 0.05)])
def test_cuda_gives_the_same_maps(student, plain, runtime, tolerance, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # else convolutions round to 10 bits
    fast = student(runtime).to("cuda")
    for count in (1, 3, 8, 3):
        clip = draw_frames(count)
        for frames in (clip, clip.pixels):
            found = fast.predict(frames, "native")
            assert found.device.type == "cuda"
            torch.testing.assert_close(found.cpu(), plain.predict(frames, "native"), rtol=0, atol=tolerance)


# --- frames at the network's size ---


class Seen(SaliencyModel):
    """Keeps what it is given."""

    def forward(self, pixels, pts_seconds=None):
        self.pixels = pixels
        return pixels.mean(1)


def natural_frames(height, width):
    """Noise whose spectrum falls as that of photographs, 2 frames."""
    generator = torch.Generator().manual_seed(height)
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    spectrum = torch.fft.rfft2(torch.randn(2, 3, height, width, generator=generator))
    noise = torch.fft.irfft2(spectrum / (rows.square() + columns.square()).sqrt().clamp_min(1 / width), (height, width))
    return ((noise / noise.std()) * 45 + 128).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(
    "size, largest, typical", [((224, 224), 1.01, 0.5), ((360, 640), 1.01, 0.5), ((720, 1280), 12, 1.5)]
)
def test_frames_shrink_in_8_bits_as_in_float(size, largest, typical):
    pixels = natural_frames(*size)
    model = Seen()
    model.input_size = (64, 64)
    model.predict(pixels)
    expected = F.interpolate(pixels.float(), (64, 64), mode="bilinear", antialias=True)
    difference = (model.pixels * 255 - expected).abs()
    assert float(difference.max()) <= largest
    assert float(difference.square().mean().sqrt()) < typical
    assert float(expected.std()) > 20


def test_frames_shrink_alike_in_every_layout(set_threads):
    set_threads(2)
    pixels = natural_frames(150, 90).repeat(9, 1, 1, 1)
    expected = shrink_frames(pixels, (64, 64))
    assert expected.dtype == torch.uint8
    assert expected.shape == (18, 3, 64, 64)
    assert torch.equal(shrink_frames(pixels.contiguous(memory_format=torch.channels_last), (64, 64)), expected)
    assert torch.equal(shrink_frames(pixels.mT.contiguous().mT, (64, 64)), expected)


def test_only_frames_that_shrink_are_touched():
    small = natural_frames(40, 60)
    assert shrink_frames(small, (64, 64)) is small
    model, large = Seen(), natural_frames(200, 100)
    model.predict(large)
    assert torch.equal(model.pixels, large.float() / 255)


@pytest.mark.parametrize("writeable", [True, False])
def test_arrays_are_read_and_left_as_they_are(writeable):
    array = natural_frames(80, 70).permute(0, 2, 3, 1).numpy().copy()
    before = array.copy()
    array.setflags(write=writeable)
    model = Seen()
    model.predict(array)
    assert np.array_equal((model.pixels * 255).round().byte().permute(0, 2, 3, 1).numpy(), before)
    assert np.array_equal(array, before)


# --- exported files ---


def open_exported(path, kind):
    if kind == "torch":
        return torch.export.load(path).module()
    return open_onnx(str(path)) if kind == "onnx" else open_openvino(str(path), 1)


@pytest.mark.parametrize("kind, clips", [("onnx", False), ("openvino", False), ("openvino", True), ("torch", True)])
def test_an_exported_file_gives_the_networks_maps(student, plain, tmp_path, kind, clips):
    require(kind)
    path = tmp_path / "new" / f"student{export.SUFFIXES[kind]}"
    assert export.export_student(student("torch"), path, kind, clips) <= 1e-4
    network = open_exported(path, kind)
    for count in (3, 11):
        pixels, times = torch.rand(count, 3, 64, 64), torch.arange(count) * 0.4
        found = network(pixels, times) if clips else network(pixels)
        with torch.no_grad():
            expected = plain(pixels, times if clips else None)
        close(normalise_log_density(found), normalise_log_density(expected))


def test_an_exported_onnx_file_is_a_backbone(student, plain, tmp_path):
    require("onnx")
    export.export_student(student("torch"), tmp_path / "student.onnx", "onnx")
    clip = draw_frames(3, 64, 64)
    close(OnnxSaliency(tmp_path / "student.onnx").predict(clip, "native"), plain.predict(clip.pixels, "native"))


@pytest.mark.parametrize(
    "kind, name, message",
    [
        ("onxx", "a.onnx", "unknown format 'onxx', .*did you mean 'onnx'"),
        ("onnx", "a.xml", "format onnx must end with .onnx, got .*a.xml"),
        ("openvino", "a", "must end with .xml"),
    ],
)
def test_export_fails_on_other_files(student, tmp_path, kind, name, message):
    with pytest.raises(ValueError, match=message):
        export.export_student(student("torch"), tmp_path / name, kind)
    assert list(tmp_path.iterdir()) == []


def test_export_fails_on_other_backbones(tmp_path):
    with pytest.raises(ValueError, match="only uva_net and uva_net_32 can be exported, got 'center'"):
        export.export_student(create_saliency("center"), tmp_path / "a.onnx", "onnx")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_states_the_parity(checkpoints, tmp_path):
    require("onnx")
    path = tmp_path / "student.onnx"
    arguments = ("export", "--format", "onnx", "--checkpoint", checkpoints["uva_net"], "--output", path)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "parity: log-densities differ by" in result.stdout
    record = json.loads(run(*arguments, "--json").stdout)
    assert record["difference"] <= 1e-4
    assert record["bytes"] == path.stat().st_size


def test_the_command_fails_where_the_file_gives_other_maps(checkpoints, tmp_path, monkeypatch):
    require("onnx")
    path = tmp_path / "student.onnx"
    torch.manual_seed(1)
    other = runtimes.to_onnx(UvaNet(**TINY), False)
    monkeypatch.setattr(export, "to_onnx", lambda model, clips: other)
    result = run("export", "--checkpoint", checkpoints["uva_net"], "--output", path)
    assert result.exit_code == 1
    assert "differ by" in result.stderr
    assert not path.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [(("--saliency", "center"), "can be exported"), (("--format", "tflite"), "format"), (("--checkpoint", "/no"), "")],
)
def test_the_command_fails_on_wrong_use(checkpoints, tmp_path, arguments, message):
    given = () if "--saliency" in arguments else ("--checkpoint", checkpoints["uva_net"])
    result = run("export", "--output", tmp_path / "a.onnx", *given, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
