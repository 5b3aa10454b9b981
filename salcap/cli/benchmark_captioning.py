"""``salcap benchmark captioning``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from salcap.cli.benchmark import benchmarks
from salcap.cli.captioning import Device, Dtype
from salcap.cli.console import AsJson, given, print_columns, say, wrong_use
from salcap.strict_json import to_json

if TYPE_CHECKING:
    from salcap.evaluation.captioning_benchmark import CaptioningBenchmark, CaptioningRow


@benchmarks.command("captioning")
def captioning(
    model: Annotated[str | None, typer.Option(help="salcap-mini, a hub id or a local folder.")] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="Instead of a model, one of true size with random weights: git-base (the default), blip-base,"
            " smolvlm-256m, qwen2.5-vl-3b-small (a quarter of its layers), qwen2.5-vl-3b or qwen2.5-vl-7b."
        ),
    ] = None,
    video: Annotated[Path | None, typer.Option(help="Default: data/sample.mp4.")] = None,
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames to look at; default: 6.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="New tokens, no more and no fewer; default: 16.")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="Which patches stay; default: the captioner's own.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Backbone beside the student at keep ratio 0.5; default: attention_center.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Turns that each arm takes; default: 5.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: torch's.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Time captions unmodified and with patches dropped by saliency, stage by stage; ends with one JSON line.

    No saliency weights are downloaded: a teacher that is not here is listed as missing.
    """
    import torch

    from salcap.evaluation.captioning_benchmark import benchmark_captioning
    from salcap.video_info import VideoDecodeError

    if threads is not None:
        torch.set_num_threads(threads)
    options = given(
        video=video,
        num_frames=num_frames,
        new_tokens=max_new_tokens,
        policy=policy,
        teacher=teacher,
        rounds=rounds,
        device=device,
        dtype=dtype,
    )
    with wrong_use():
        try:
            result = benchmark_captioning(model, shape=shape, progress=say, **options)
        except VideoDecodeError as error:
            raise ValueError(f"{error}; name another file by --video") from error
    if not as_json:
        _print(result)
    print(to_json(result.to_dict()))


def _print(result: CaptioningBenchmark) -> None:
    from salcap.evaluation.captioning_benchmark import STAGES

    print(
        f"One caption of {result.num_frames} frames and {result.new_tokens} new tokens by {result.model} on"
        f" {result.device} in {result.dtype}, {result.threads} threads, policy {result.policy}, {result.video};"
        f" milliseconds, medians of {len(result.rows[0].runs_ms)} rounds in which the arms take turns."
    )
    if result.random_weights_of is not None:
        print(f"Random weights, timing only: the config of {result.random_weights_of}.")
    for name, meaning in STAGES.items():
        print(f"  {name}: {meaning}")
    headings = ("", "tokens", *STAGES, "total", "p95", "ratio", "GFLOPs", "peak MiB")
    print_columns(headings, [_cells(row, tuple(STAGES)) for row in result.rows])
    print("ratio: of the total to the unmodified model's of the same round, median. GFLOPs: * without saliency's own.")
    print("peak: rise of memory in one run, weights not counted.")
    keep = result.break_even_keep_ratio
    print("break-even keep ratio: " + ("below all that were measured" if keep is None else f"{keep:.3f}"))
    if result.student_over_teacher is not None:
        print(f"student-embedded over teacher-embedded total: {result.student_over_teacher:.3f}")
    for name, reason in result.missing.items():
        print(f"missing: {name}: {reason}")


def _cells(row: CaptioningRow, stages: tuple[str, ...]) -> tuple[str, ...]:
    counted = [flops for flops in row.flops.values() if flops is not None]
    return (
        row.name,
        str(row.visual_tokens),
        *(f"{row.ms[stage]['p50']:,.1f}" for stage in (*stages, "total")),
        f"{row.ms['total']['p95']:,.1f}",
        f"{row.ratio:.3f}",
        f"{sum(counted) / 1e9:,.1f}" + "*" * (len(counted) < len(row.flops)),
        "-" if row.peak_memory_mib is None else f"{row.peak_memory_mib:,.0f}",
    )
