"""The captioning benchmark: what it counts, and what it reports. Nothing here depends on how fast this machine is."""

from __future__ import annotations

import json
import os

import pytest
import tiny_models
import tiny_multimodal
import torch
from test_captioners import assert_same_bits, generate_plainly, make_clip, outputs, state_of_modules  # noqa: F401
from test_pipeline import SAMPLE
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from salcap.captioners import load_captioner
from salcap.captioners.model_shapes import MODEL_SHAPES, create_shape
from salcap.cli import app
from salcap.config import Weighting
from salcap.evaluation import captioning_benchmark
from salcap.evaluation.captioning_benchmark import KEEP_RATIOS, STAGES, benchmark_captioning, break_even, counting_flops
from salcap.evaluation.instruments import memory_mib, peak_rise_mib, percentiles
from salcap.evaluation.saliency_benchmark import count_macs
from salcap.pictures.plots import draw_plot
from salcap.saliency import create_saliency, runtimes

FAMILIES = {
    "git": tiny_models.git,
    "blip": tiny_models.blip,
    "smolvlm": tiny_multimodal.smolvlm,
    "qwen2_5_vl": tiny_multimodal.qwen2_5_vl,
}
SMALL = {"video": SAMPLE, "num_frames": 2, "new_tokens": 3, "policy": "top", "rounds": 2}
PARAMETERS = {  # of the published checkpoints; tied ones once
    "git-base": 176_623_674,
    "blip-base": 223_971_644,
    "smolvlm-256m": 256_484_928,
    "qwen2.5-vl-3b-small": 1_200_691_392,
    "qwen2.5-vl-3b": 3_754_622_976,
    "qwen2.5-vl-7b": 8_292_166_656,
}


def count_flops(run):
    with FlopCounterMode(display=False, custom_mapping=captioning_benchmark._ATTENTION) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture(scope="module", autouse=True)
def no_conversion():
    """The student runs in torch: to convert it for another runtime takes longer than all of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtimes, "_PACKAGES", {"torch": ()})
        yield


# --- the arms ---


@pytest.fixture(scope="module", params=FAMILIES)
def result(request):
    tiny = FAMILIES[request.param]()
    before = state_of_modules(tiny.model)
    yield benchmark_captioning(tiny.model, tiny.processor, teacher="center", **SMALL)
    assert state_of_modules(tiny.model) == before


def test_every_arm_has_a_row(result):
    student = [("uva_net", ratio) for ratio in KEEP_RATIOS]
    arms = [(None, None), *student, ("center", 0.5)]
    assert [(row.saliency, row.keep_ratio) for row in result.rows] == arms
    assert [row.name for row in result.rows[1:]] == [f"{name} {ratio}" for name, ratio in arms[1:]]
    assert (result.missing, result.random_weights_of, result.policy) == ({}, None, "top")
    assert (result.num_frames, result.new_tokens, result.device, result.dtype) == (2, 3, "cpu", "float32")
    assert result.student_over_teacher > 0


def test_the_plot_names_every_arm_and_stage(result, tmp_path):
    (tmp_path / "benchmark.json").write_text(json.dumps(result.to_dict()))
    drawn = draw_plot(tmp_path / "benchmark.json", tmp_path / "benchmark.svg").read_text()
    for name in (*(row.name for row in result.rows), *(stage for stage in STAGES if stage != "read")):
        assert f">{name}</text>" in drawn


def test_stages_sum_to_the_total_in_every_round(result):
    for row in result.rows:
        assert len(row.runs_ms) == SMALL["rounds"]
        assert set(row.ms) == {*STAGES, "total"}
        for run in row.runs_ms:
            assert sum(run[stage] for stage in STAGES if stage != "read") == pytest.approx(run["total"])
            assert (run["saliency"] > 0) == (row.saliency is not None)
            assert min(run[stage] for stage in STAGES if stage != "saliency") > 0
        for stage, spread in row.ms.items():
            assert spread == percentiles([run[stage] for run in row.runs_ms])


def test_ratios_are_paired_by_round(result):
    plain, *_, taught = result.rows
    assert plain.ratio == 1.0
    for row in result.rows:
        pairs = zip(row.runs_ms, plain.runs_ms, strict=True)
        assert row.ratio == pytest.approx(sum(run["total"] / its["total"] for run, its in pairs) / 2)
    (embedded,) = (row for row in result.rows if row.name == "uva_net 0.5")
    pairs = zip(embedded.runs_ms, taught.runs_ms, strict=True)
    assert result.student_over_teacher == pytest.approx(sum(run["total"] / its["total"] for run, its in pairs) / 2)


def test_tokens_and_flops_fall_with_the_keep_ratio(result):
    plain, full, *pruned, taught = result.rows
    assert full.visual_tokens == plain.visual_tokens
    work = [{stage: flops for stage, flops in row.flops.items() if stage != "saliency"} for row in (plain, full)]
    assert set(work[0]) == {"encode", "prefill", "decode"}
    maps = work[1].pop("encode") - work[0].pop("encode")  # to lay them over the patches is a matrix product
    assert 0 < maps < 0.05 * plain.flops["encode"]
    assert work[0] == work[1]
    for more, fewer in zip([full, *pruned], pruned, strict=False):
        assert 0 < fewer.visual_tokens < more.visual_tokens
        for stage in ("encode", "prefill", "decode"):
            assert 0 < fewer.flops[stage] < more.flops[stage], stage
    half = pruned[1]
    assert (taught.visual_tokens, taught.flops["prefill"]) == (half.visual_tokens, half.flops["prefill"])
    assert half.flops["saliency"] == 2 * 2 * count_macs(create_saliency("uva_net"), (64, 64))
    assert (plain.flops["saliency"], taught.flops["saliency"]) == (0, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_unmodified_arm_does_the_work_of_plain_generate(family, outputs):  # noqa: F811
    """Same tokens, same scores, and not one multiplication more."""
    tiny = FAMILIES[family]()
    captioner, clip = load_captioner(tiny.model, tiny.processor), make_clip(0, 1 if family == "blip" else 2)
    generation = {"min_new_tokens": 4, "max_new_tokens": 4}
    prompt = {"prompt": tiny_multimodal.PROMPT} if isinstance(tiny, tiny_multimodal.TinyMultimodal) else {}

    def plain():
        return tiny.generate([clip], **generation) if prompt else generate_plainly(family, tiny, [clip], **generation)

    theirs = count_flops(plain)
    ours = count_flops(lambda: captioner.generate([clip], None, Weighting(), **generation, **prompt))
    assert ours == theirs > 0
    assert_same_bits(outputs[1][0], outputs[0][0])
    assert len(outputs[1][0].scores) == 4


def test_a_teacher_that_is_not_here_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("SALCAP_WEIGHTS", str(tmp_path / "empty"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("SALCAP_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)  # the benchmark itself must not download
    tiny = tiny_models.git()
    result = benchmark_captioning(tiny.model, tiny.processor, **{**SMALL, "rounds": 1})
    assert "no weights attention_center/center.tflite" in result.missing["attention_center"]
    assert result.student_over_teacher is None
    assert {row.saliency for row in result.rows} == {None, "uva_net"}
    assert "SALCAP_OFFLINE" not in os.environ


@pytest.mark.parametrize(
    "options, message",
    [
        ({"shape": "git-bse"}, "unknown shape 'git-bse'.*did you mean 'git-base'"),
        ({"model": "salcap-mini", "shape": "git-base"}, "a model or a shape, got both"),
        ({"model": "salcap-mini", "rounds": 0}, "at least one round and one new token, got 0 and 16"),
        ({"model": "salcap-mini", "new_tokens": 0}, "got 5 and 0"),
        ({"model": "salcap-mini", "teacher": "centre", "rounds": 1}, "centre"),
    ],
)
def test_wrong_use_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        benchmark_captioning(**options)


# --- stages ---


@pytest.mark.parametrize("generation", [{}, {"num_beams": 2}, {"use_cache": False}], ids=lambda g: str(*g))
@pytest.mark.parametrize("family", sorted(tiny_models.FAMILIES | tiny_multimodal.FAMILIES))
def test_every_family_tells_its_stages_apart(family, generation):
    """By FLOPs in place of milliseconds: a stage that is not where it should be has none."""
    tiny = (tiny_models.FAMILIES | tiny_multimodal.FAMILIES)[family]()
    captioner, clips = load_captioner(tiny.model, tiny.processor), [make_clip(0), make_clip(1)]
    trained = [weight.requires_grad for weight in tiny.model.parameters()]
    with counting_flops(captioner) as counter:
        texts = captioner.generate(clips, None, Weighting(), min_new_tokens=3, max_new_tokens=3, **generation)
    assert list(texts[0].timings) == ["preprocess_ms", "encode_ms", "prefill_ms", "decode_ms"]
    assert texts[0].timings["preprocess_ms"] == 0
    assert "now_ms" not in vars(captioner)
    assert [weight.requires_grad for weight in tiny.model.parameters()] == trained
    assert min(texts[0].timings[f"{stage}_ms"] for stage in ("encode", "prefill", "decode")) > 0
    assert sum(sum(text.timings.values()) for text in texts) == pytest.approx(counter.get_total_flops())


# --- counting ---


@pytest.mark.parametrize(
    "ratios, expected",
    [
        ({1.0: 1.2, 0.75: 1.1, 0.5: 0.6, 0.25: 0.3}, 0.5 + 0.25 * 0.8),
        ({1.0: 1.2, 0.75: 1.0, 0.5: 0.6}, 0.75),
        ({0.25: 0.3, 1.0: 0.99}, 1.0),
        ({1.0: 1.5, 0.5: 1.01}, None),
    ],
)
def test_break_even_lies_on_the_line_between_neighbours(ratios, expected):
    assert break_even(ratios) == (expected and pytest.approx(expected))


def test_attention_counts_on_the_cpu():
    heads = torch.rand(1, 2, 8, 4)
    with torch.no_grad():
        assert count_flops(lambda: F.scaled_dot_product_attention(heads, heads, heads)) == 2 * 2 * (8 * 8 * 4) * 2


def test_percentiles_are_values_that_were_measured():
    assert percentiles([3.0, 1.0, 2.0]) == {"p50": 2.0, "p95": 3.0}
    assert percentiles(list(range(1, 101))) == {"p50": 50, "p95": 95}


def test_peak_memory_is_that_of_the_run():
    if memory_mib("VmHWM") is None:
        pytest.skip("no /proc")
    for mib in (192, 64):  # a higher peak before must not count
        rise = peak_rise_mib(lambda mib=mib: torch.ones(mib, 2**18), torch.device("cpu"))
        assert rise is None or mib - 16 < rise < mib + 48


# --- shapes ---


@pytest.mark.parametrize("name", MODEL_SHAPES)
def test_a_shape_is_the_published_model_without_its_weights(name):
    with torch.device("meta"):
        model, processor = create_shape(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    captioner = load_captioner(model, processor)
    clip = make_clip(0, 6, 240, 320)
    assert captioner.modes >= {"none", "prune"}
    pixels = captioner.preprocess(clip)
    if name.startswith("qwen2.5-vl"):
        assert pixels.shape == (3, 9, 11, 4, 3 * 2 * 14 * 14)
        counts = [99] * 3
    else:
        side = {"git-base": 224, "blip-base": 384, "smolvlm-256m": 512}[name]
        assert pixels.shape == (6, 3, side, side)
        counts = [64] * 6
    if hasattr(captioner, "prompt_ids"):
        ids = captioner.prompt_ids(clip, counts, captioner.default_prompt)
        assert ids.count(captioner.placeholder_id) == sum(counts)
        assert len(ids) > sum(counts) + 10


def test_a_shape_has_the_same_weights_every_time_and_leaves_the_callers_seed(monkeypatch):
    monkeypatch.setitem(
        MODEL_SHAPES,
        "tiny",
        MODEL_SHAPES["git-base"].__class__("tiny", "GitForCausalLM", tiny_git_config, lambda: None),
    )
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    one, other = (create_shape("tiny")[0].state_dict() for _ in range(2))
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def tiny_git_config():
    return tiny_models.git().model.config


# --- the command ---


def run(*arguments):
    return CliRunner().invoke(app, ["benchmark", "captioning", *map(str, arguments)])


def test_the_command_ends_with_one_json_line(result, monkeypatch):
    given = []
    monkeypatch.setattr(
        captioning_benchmark, "benchmark_captioning", lambda *a, **options: given.append(options) or result
    )
    options = ("--video", "a.mp4", "--num-frames", 3, "--max-new-tokens", 4, "--rounds", 2, "--policy", "pool")
    plain, as_json = run(*options), run("--json")
    assert plain.exit_code == as_json.exit_code == 0
    expected = {"num_frames": 3, "new_tokens": 4, "rounds": 2, "policy": "pool"}
    assert {name: given[0][name] for name in expected} == expected
    assert set(given[1]) == {"shape", "progress"}  # defaults are the function's
    *text, line = plain.stdout.splitlines()
    record = json.loads(line)
    assert as_json.stdout.count("\n") == 1
    assert record == json.loads(as_json.stdout) == json.loads(json.dumps(result.to_dict()))
    assert record["benchmark"] == "captioning"
    printed = "\n".join(text)
    for said in (*STAGES, "unmodified", "uva_net 0.25", "break-even", "student-embedded over teacher-embedded"):
        assert said in printed
    assert "Random weights" not in printed


def test_the_command_says_what_is_missing_and_what_is_random(result, monkeypatch):
    from dataclasses import replace

    told = replace(
        result,
        random_weights_of="x/y with a quarter of its layers",
        missing={"attention_center": "no weights"},
        student_over_teacher=None,
        break_even_keep_ratio=None,
    )
    monkeypatch.setattr(captioning_benchmark, "benchmark_captioning", lambda *a, **options: told)
    printed = run().stdout
    assert "Random weights, timing only: the config of x/y with a quarter of its layers." in printed
    assert "missing: attention_center: no weights" in printed
    assert "break-even keep ratio: below all that were measured" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--shape", "git-bse"), "did you mean 'git-base'"),
        (("--model", "salcap-mini", "--shape", "git-base"), "got both"),
        (("--rounds", 0), "rounds"),
        (("--model", "salcap-mini", "--video", "missing.mp4"), "name another file by --video"),
        (("--model", "salcap-mini", "--policy", "tops"), "did you mean 'top'"),
    ],
)
def test_the_command_fails_on_wrong_use(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
