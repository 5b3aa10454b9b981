"""On CUDA all is as on the CPU: every family, the bundled captioner, runs over many videos, the benchmarks."""

from __future__ import annotations

import json

import pytest
import tiny_models
import torch
from test_inspection import FAMILIES
from test_inspection import load as load_tiny
from test_pipeline import SAMPLE
from typer.testing import CliRunner

import salcap
from salcap.cli import app
from salcap.evaluation.captioning_benchmark import benchmark_captioning
from salcap.evaluation.saliency_benchmark import benchmark_saliency
from salcap.manifest import Item
from salcap.records import read_records
from salcap.saliency.runtimes import FastUvaNet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")


def load(device: str = "cuda", **options):
    return salcap.SaliencyCaptioner.from_pretrained("salcap-mini", device=device, **options)


def items(count: int) -> list[Item]:
    return [Item(str(SAMPLE), str(number)) for number in range(count)]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_passes_all_self_tests(family):
    found = salcap.inspect(load_tiny(family, "cuda"))
    assert not {name: check.detail for name, check in found.checks.items() if check.passed is not True}


@pytest.mark.parametrize("saliency", ["center", "uva_net", "effnet_teacher"])
@pytest.mark.parametrize("mode", ["none", "scale+bias", "prune", "zoom"])
def test_the_bundled_captioner_says_the_same(mode, saliency):
    cpu, cuda = (load(device, saliency=saliency, mode=mode).caption(SAMPLE, num_frames=4) for device in ("cpu", "cuda"))
    assert (cuda.text, cuda.visual_tokens) == (cpu.text, cpu.visual_tokens)
    assert cuda.score == pytest.approx(cpu.score, abs=0.05)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_captions_in_half_precision(dtype):
    half, full = (load(mode="prune", keep_ratio=0.5, dtype=d).caption(SAMPLE, num_frames=4) for d in (dtype, "float32"))
    assert half.score == pytest.approx(full.score, abs=0.1)


def test_the_threads_of_two_streams_share_the_device(tmp_path):
    captioner = load(mode="prune", keep_ratio=0.5)
    alone = captioner.caption(SAMPLE, num_frames=4).text
    for streams in (None, 2):
        out = tmp_path / f"{streams}.jsonl"
        salcap.caption_corpus(captioner, items(12), out, num_frames=4, batch_size=4, num_streams=streams)
        assert [record["caption"] for record in read_records(out)] == [alone] * 12


def test_real_lack_of_memory_shrinks_the_batches(tmp_path):
    captioner, limit = load(mode="prune", keep_ratio=0.5), 2 * 2**30
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        out = tmp_path / "out.jsonl"
        salcap.caption_corpus(captioner, items(24), out, num_frames=64, batch_size=24, num_workers=4)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    records = list(read_records(out))
    assert all(record["error"] is None for record in records)
    assert any("out of memory" in line for record in records for line in record["warnings"])


def test_the_captioning_benchmark_counts_what_it_counts_on_the_cpu():
    def measure(device):
        tiny = tiny_models.git()
        found = benchmark_captioning(
            tiny.model, tiny.processor, video=SAMPLE, num_frames=2, new_tokens=3, policy="top", rounds=1,
            teacher="center", device=device,
        )  # fmt: skip
        return found, [(row.name, row.visual_tokens, row.flops) for row in found.rows]

    (cuda, counted), (_, expected) = measure("cuda"), measure("cpu")
    assert counted == expected
    assert cuda.device == "cuda:0"
    assert all(row.peak_memory_mib > 0 for row in cuda.rows)


def test_the_saliency_benchmark_measures_both_precisions():
    found = benchmark_saliency(("uva_net", "center"), rounds=1, device="cuda")
    assert {row.name for row in found.rows} == {"uva_net [auto]", "uva_net [torch]", "center"}
    assert not found.missing
    assert all(row.peak_memory_mib > 0 for row in found.rows if row.runtime)


def test_the_command_line_runs_there(tmp_path):
    options = ["--device", "cuda", "--dtype", "bfloat16", "--output", str(tmp_path / "a.jsonl")]
    result = CliRunner().invoke(app, ["caption", str(SAMPLE), *options])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "a.jsonl").read_text().splitlines()[-1])["error"] is None


def test_the_student_is_seen_anew_after_a_move():
    model = salcap.create_saliency("uva_net")
    assert isinstance(model, FastUvaNet)
    frames = salcap.read_frames(SAMPLE, 4).pixels
    here = model.predict(frames, "native")
    there = model.to("cuda").predict(frames, "native")
    assert there.device.type == "cuda"
    back = model.to("cpu").predict(frames, "native")
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=0.05)
    torch.testing.assert_close(back, here, rtol=0, atol=1e-5)
