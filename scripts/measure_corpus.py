"""Measure `caption_corpus` with salcap-mini: memory by the number of clips and the length of a video, and throughput.

    python scripts/measure_corpus.py /tmp/measure-corpus [--num-clips 1000] [--minutes 180] [--clips FOLDER]

Memory: the peaks (VmHWM, Linux) of the run and its reading processes, added up, each arm in a process of its own: 50
clips, --num-clips clips, and a 720p video of --minutes in windows of 10 s, beside one of 50 windows.

Throughput: a plain loop over `caption()` and `caption_corpus` caption the same clips in turns, in one process;
those of --clips, or the rendered ones, which are small and cost next to no decoding. The share of the time in which the
model is busy is that of saliency, encoder and language model, of all streams together: up to 2 where two are at work.

Clips and videos are rendered into the folder; those that are there already are kept. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from make_long_video import render
from make_standin_set import render_clips

import salcap

FEW, WINDOW_SECONDS = 50, 10.0
MODEL_STAGES = ("saliency_ms", "encode_ms", "prefill_ms", "decode_ms")

load = partial(salcap.SaliencyCaptioner.from_pretrained, "salcap-mini")


def peak_mib(pid: int) -> float:
    """Most memory that a process has held at once; 0 of one that is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def measure_memory(paths: list[str], **options: Any) -> dict[str, float]:
    """Peaks of this process and of its reading processes."""
    run, readers, num_records = 0.0, 0.0, 0

    def progress(record: dict[str, Any], done: int, total: int) -> None:
        nonlocal run, readers, num_records
        process = psutil.Process()
        run, num_records = peak_mib(process.pid), done
        readers = max(readers, sum(peak_mib(child.pid) for child in process.children()))

    summary = salcap.caption_corpus(load, paths, progress=progress, **options)
    if summary.errors:
        raise RuntimeError(f"only what is captioned can be measured, got {summary.errors}")
    return {"records": num_records, "run_mib": run, "readers_mib": readers, "mib": run + readers}


def busy_seconds(timings: Iterable[Mapping[str, float]]) -> float:
    return sum(each.get(stage, 0.0) for each in timings for stage in MODEL_STAGES) / 1000


def measure_throughput(paths: list[str], num_frames: int, rounds: int, **options: Any) -> dict[str, float]:
    """Medians of the rounds. ``ratio`` compares whole calls, ``ratio_after_start`` leaves out the time that reading
    processes take to start."""
    captioner = load()
    captioner.caption(paths[0], num_frames=num_frames)
    rows: list[dict[str, float]] = []
    for _ in range(rounds):
        started = time.perf_counter()
        captions = [captioner.caption(path, num_frames=num_frames) for path in paths]
        loop = time.perf_counter() - started

        moments: list[tuple[float, Mapping[str, float]]] = []

        def progress(record: dict[str, Any], *_: int, moments: list[Any] = moments) -> None:
            moments.append((time.perf_counter(), record["timings"]))

        started = time.perf_counter()
        salcap.caption_corpus(captioner, paths, num_frames=num_frames, progress=progress, **options)
        corpus, first = time.perf_counter() - started, moments[0][0]
        num_first = sum(moment < first + 0.001 for moment, _ in moments)  # of the first batch
        rest = moments[-1][0] - first
        rows.append(
            {
                "loop_seconds": loop,
                "corpus_seconds": corpus,
                "ratio": loop / corpus,
                "ratio_after_start": loop / len(paths) * (len(paths) - num_first) / max(rest, 1e-9),
                "model_busy_in_loop": busy_seconds(caption.timings for caption in captions) / loop,
                "model_busy": busy_seconds(timings for _, timings in moments) / corpus,
            }
        )
    return {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}


def in_own_process(function: Callable[..., dict[str, float]], *args: Any, **options: Any) -> dict[str, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        result = process.submit(function, *args, **options).result()
    print(f"{function.__name__}: {result}", flush=True)
    return result


def measure(
    folder: Path,
    num_clips: int,
    minutes: float,
    own_clips: Path | None = None,
    *,
    few: int = FEW,
    most: int = 200,
    num_frames: int = 8,
    batch_size: int = 8,
    rounds: int = 3,
) -> dict[str, Any]:
    """The result is JSON-ready; ``most`` is the largest number of clips whose throughput is measured.

    Raises:
        ValueError: fewer clips to compare with than a batch holds.
        RuntimeError: clips that cannot be captioned.
    """
    if few < batch_size:
        raise ValueError(f"the few must fill a batch, or only its memory is compared, got {few} for {batch_size}")
    clips = render_clips(folder / "clips", max(num_clips, few))
    videos = {"short_video": few * WINDOW_SECONDS / 60, "long_video": minutes}
    files = {name: folder / f"{length:g}min.mp4" for name, length in videos.items()}
    for name, path in files.items():
        if not path.exists():
            render(path, videos[name])
    options = {"num_frames": num_frames, "batch_size": batch_size}
    arms = {"few_clips": clips[:few], "many_clips": clips[:num_clips]}
    memory = {
        **{name: in_own_process(measure_memory, [*map(str, paths)], **options) for name, paths in arms.items()},
        **{
            name: in_own_process(measure_memory, [str(path)], windows=WINDOW_SECONDS, **options)
            for name, path in files.items()
        },
    }
    measured = clips if own_clips is None else sorted(own_clips.glob("*.mp4"))
    throughput = in_own_process(measure_throughput, [str(path) for path in measured[:most]], rounds=rounds, **options)
    pairs = (("many_clips", "few_clips"), ("long_video", "few_clips"), ("long_video", "short_video"))
    return {
        "peak_mib": {name: {key: round(value) for key, value in arm.items()} for name, arm in memory.items()},
        **{f"{one}_to_{other}": round(memory[one]["mib"] / memory[other]["mib"], 3) for one, other in pairs},
        "throughput": {"clips": len(measured[:most]), **throughput},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-clips", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=180.0)
    parser.add_argument("--clips", type=Path, help="folder of .mp4 files for the throughput")
    parser.add_argument("--few", type=int, default=FEW, help="clips and windows that others are compared with")
    parser.add_argument("--most", type=int, default=200, help="clips for the throughput")
    parser.add_argument("--num-frames", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    result = measure(
        options.folder, options.num_clips, options.minutes, options.clips, few=options.few, most=options.most,
        num_frames=options.num_frames, batch_size=options.batch_size, rounds=options.rounds,
    )  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
