"""``salcap benchmark``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from salcap.cli.captioning import Device
from salcap.cli.console import AsJson, app, print_columns, say, wrong_use
from salcap.strict_json import to_json

if TYPE_CHECKING:
    from salcap.evaluation.saliency_benchmark import BenchmarkRow, SaliencyBenchmark

benchmarks = typer.Typer(no_args_is_help=True, help="Measure speed and size on this machine.")
app.add_typer(benchmarks, name="benchmark")


@benchmarks.callback()
def benchmark() -> None:
    """Measure speed and size on this machine."""


@benchmarks.command("saliency")
def saliency_(
    saliency: Annotated[
        str | None, typer.Option(help="Backbones, separated by commas; default: the student, teachers, a baseline.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Trained weights of the students: a folder or a Hub id; default: salcap's.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Turns that each backbone takes; default: 5.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each backbone; default: torch's.")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Compare the student, in every installed runtime, with teachers and baselines; ends with one JSON line.

    Nothing is downloaded: backbones whose weights or packages are not here are listed as missing.
    """
    import torch

    from salcap.evaluation.saliency_benchmark import BACKBONES, ROUNDS, benchmark_saliency

    names = BACKBONES if saliency is None else tuple(saliency.split(","))
    if threads is not None:
        torch.set_num_threads(threads)
    with wrong_use():
        result = benchmark_saliency(names, checkpoint, rounds or ROUNDS, say, device)
    if not as_json:
        _print(result)
    print(to_json(result.to_dict()))


def _print(result: SaliencyBenchmark) -> None:
    from salcap.evaluation.saliency_benchmark import MEASURES, REFERENCE

    height, width = result.frame_size
    where = f"{result.device}, {result.threads} threads"
    print(f"Frames per second of saliency backbones on {where}, medians; frames are {height}x{width}.")
    for name, meaning in MEASURES.items():
        print(f"  {name}: {meaning}")
    print("  * fewer frames than 64 in a call, which would take more than two seconds")
    print_columns(("", *MEASURES, "x teacher"), [_speed_cells(row, tuple(MEASURES)) for row in result.rows])
    here = "" if result.device == "cpu" else ", which runs on the CPU"
    print(f"x teacher: frames_64 over that of {REFERENCE}{here}.\n")
    headings = ("", "p50 ms", "p95 ms", "input", "weights", "file kB", "peak MiB", "MMACs", "reached")
    print_columns(headings, [_size_cells(row) for row in result.rows])
    memory = "rise of the process's memory, frames not counted" if result.device == "cpu" else "the device's memory"
    print(f"p50, p95: latency of frames_1. peak: {memory}. MMACs: of one frame.")
    if result.matmul_peak_gmacs is not None:
        print(
            f"Roofline: this machine's matrix product reached {result.matmul_peak_gmacs:.1f} GMAC/s (float32, best"
            " of all rounds); over its MACs that bounds a network's frames per second. reached: network_64 over it."
        )
    for name, reason in result.missing.items():
        print(f"missing: {name}: {reason}")


def _speed_cells(row: BenchmarkRow, measures: tuple[str, ...]) -> tuple[str, ...]:
    mark = {name: "*" if name.endswith("_64") and row.batch < 64 else "" for name in measures}
    speeds = (
        f"{row.frames_per_second[name]:,.1f}{mark[name]}" if name in row.frames_per_second else "-" for name in measures
    )
    ratio = "-" if row.times_reference is None else f"{row.times_reference['frames_64']:,.1f}"
    return (row.name, *speeds, ratio)


def _size_cells(row: BenchmarkRow) -> tuple[str, ...]:
    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    latency = row.latency_ms["frames_1"]
    return (
        row.name,
        f"{latency['p50']:.2f}",
        f"{latency['p95']:.2f}",
        "x".join(map(str, row.input_size)),
        cell(row.parameters, ","),
        cell(row.file_bytes and row.file_bytes / 1e3, ",.0f"),
        cell(row.peak_memory_mib, ",.0f"),
        cell(row.macs and row.macs / 1e6, ",.1f"),
        cell(row.roofline_share, ".1%"),
    )
