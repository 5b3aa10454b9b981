"""The saliency benchmark: what it counts, and what it reports. Nothing here depends on how fast this machine is."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from salcap.cli import app
from salcap.evaluation import saliency_benchmark
from salcap.evaluation.saliency_benchmark import MEASURES, benchmark_saliency, count_macs
from salcap.pictures.plots import draw_plot
from salcap.saliency import TorchSaliency, create_saliency
from salcap.saliency.runtimes import RUNTIMES, installed_runtimes
from salcap.saliency.uva_net import UvaNet

TINY = {"widths": (8, 8, 16, 16), "depths": (1, 1, 1)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    UvaNet(**TINY).eval().save_pretrained(folder)
    return folder


# --- counting ---


class Dense(nn.Module):
    """A map by one matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 4 * 5, 4 * 5)

    def forward(self, images):
        return self.linear(images.flatten(1)).view(-1, 4, 5)


@pytest.mark.parametrize(
    "network, size, macs",
    [
        (nn.Conv2d(3, 1, 3, padding=1), (6, 8), 48 * 27),
        (nn.Conv2d(3, 1, 3, stride=2, padding=1), (6, 8), 12 * 27),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 1, 1)),
            (6, 8),
            48 * (12 + 36 + 4),  # pointwise, depthwise, pointwise
        ),
        (Dense(), (4, 5), 60 * 20),
    ],
)
def test_macs_are_those_of_one_frame(network, size, macs):
    assert count_macs(TorchSaliency(network, size=size), size) == macs


def test_macs_of_a_student_do_not_depend_on_its_runtime(checkpoint):
    plain = UvaNet.from_pretrained(checkpoint)
    expected = count_macs(plain, (64, 64))
    assert expected == sum(module.weight[0].numel() * positions for module, positions in _convolutions(plain))
    for runtime in installed_runtimes():
        assert count_macs(create_saliency("uva_net", checkpoint=checkpoint, runtime=runtime), (64, 64)) == expected


def _convolutions(model):
    """Each call of a convolution for one still: the layer, and how many values it put out."""
    calls = []
    hooks = [
        module.register_forward_hook(lambda module, _, out: calls.append((module, out.numel())))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    model(torch.zeros(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    return calls


def test_macs_that_torch_does_not_see_are_not_counted():
    assert count_macs(create_saliency("spectral_residual"), (64, 64)) is None


# --- the run ---


@pytest.fixture(scope="module")
def result(checkpoint, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SALCAP_WEIGHTS", str(tmp_path_factory.mktemp("empty")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(saliency_benchmark, "REFERENCE", "uva_net [torch]")
        yield benchmark_saliency(("uva_net", "glimpse", "center"), str(checkpoint), rounds=1)


def test_every_backbone_has_a_row_or_a_reason(result):
    students = {f"uva_net [{runtime}]" for runtime in RUNTIMES if runtime != "auto"}
    here = {f"uva_net [{runtime}]" for runtime in installed_runtimes()}
    assert {row.name for row in result.rows} == here | {"center"}
    assert set(result.missing) == students - here | {"glimpse"}
    assert "no weights glimpse/model.tflite" in result.missing["glimpse"]
    assert (result.device, result.threads) == ("cpu", torch.get_num_threads())
    assert result.matmul_peak_gmacs > 0


def test_the_plot_names_every_row_and_its_speed(result, tmp_path):
    (tmp_path / "benchmark.json").write_text(json.dumps(result.to_dict()))
    drawn = draw_plot(tmp_path / "benchmark.json", tmp_path / "benchmark.svg").read_text()
    for row in result.rows:
        assert f">{row.name}</text>" in drawn
        assert f"{row.frames_per_second['frames_64']:,.1f}</text>" in drawn


def test_a_students_row_is_whole(result, checkpoint):
    plain = UvaNet.from_pretrained(checkpoint)
    for row in result.rows:
        if row.runtime is None:
            continue
        assert set(row.frames_per_second) == set(MEASURES)
        assert min(row.frames_per_second.values()) > 0
        assert row.name == f"uva_net [{row.runtime}]"
        assert row.input_size == (64, 64)
        assert row.parameters == sum(weight.numel() for weight in plain.parameters())
        assert row.file_bytes == (checkpoint / "model.safetensors").stat().st_size
        assert row.macs == count_macs(plain, (64, 64))
        assert row.peak_memory_mib is None or row.peak_memory_mib > 0
        assert row.roofline_frames_per_second == pytest.approx(result.matmul_peak_gmacs * 1e9 / row.macs)
        reached = row.frames_per_second["network_64"] / row.roofline_frames_per_second
        assert row.roofline_share == pytest.approx(reached)
        for latency in row.latency_ms.values():
            assert 0 < latency["p50"] <= latency["p95"]
            assert latency["calls"] >= 1


def test_a_baselines_row_leaves_out_what_it_has_not(result):
    (row,) = (row for row in result.rows if row.name == "center")
    assert set(row.frames_per_second) == set(MEASURES) - {"clip_64"}
    nothing = (row.runtime, row.parameters, row.file_bytes, row.macs, row.roofline_share)
    assert nothing == (None,) * 5


def test_ratios_are_those_of_the_reference(result):
    speeds = {row.name: row.frames_per_second for row in result.rows}
    for row in result.rows:
        for measure, ratio in row.times_reference.items():
            assert ratio == pytest.approx(speeds[row.name][measure] / speeds["uva_net [torch]"][measure])
    (itself,) = (row for row in result.rows if row.runtime == "torch")
    assert set(itself.times_reference.values()) == {1.0}


def test_slow_backbones_get_fewer_frames(tmp_path, monkeypatch):
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "from salcap.saliency import SaliencyModel\n"
        "class Slow(SaliencyModel):\n"
        "    def forward(self, pixels, pts_seconds=None):\n"
        "        time.sleep(0.02 * len(pixels))\n"
        "        return pixels.mean(1)\n"
    )
    monkeypatch.setattr(saliency_benchmark, "_SECONDS_A_CALL", 0.1)
    candidate = saliency_benchmark._Candidate("slow", f"{tmp_path}/slow.py:Slow", {}, torch.device("cpu"))
    backbone = saliency_benchmark._Backbone(candidate)
    facts = backbone.prepare()
    assert 1 <= facts["batch"] <= 5
    batches = {"network_1": 1, "network_64": facts["batch"], "frames_1": 1, "frames_64": facts["batch"]}
    assert facts["batch_of"] == batches
    assert min(backbone.measure("network_64")) >= 0.02 * facts["batch"]


# --- the command ---


def run(*arguments):
    return CliRunner().invoke(app, ["benchmark", "saliency", *map(str, arguments)])


def test_the_command_ends_with_one_json_line(result, monkeypatch):
    monkeypatch.setattr(saliency_benchmark, "benchmark_saliency", lambda *arguments: result)
    plain, as_json = run(), run("--json")
    assert plain.exit_code == as_json.exit_code == 0
    *text, line = plain.stdout.splitlines()
    record = json.loads(line)
    assert record == json.loads(as_json.stdout)
    assert record == json.loads(json.dumps(result.to_dict()))
    assert record["benchmark"] == "saliency"
    assert {row["name"] for row in record["rows"]} == {row.name for row in result.rows}
    printed = "\n".join(text)
    for said in (*MEASURES, "uva_net [torch]", "missing: glimpse", "Roofline", "GMAC/s"):
        assert said in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--saliency", "uva_nett"), "did you mean 'uva_net'"),
        (("--saliency", ""), "unknown"),
        (("--rounds", 0), "rounds"),
        (("--device", "cuda:77"), "cuda:77"),
    ],
)
def test_the_command_fails_on_wrong_use(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
