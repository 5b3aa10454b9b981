"""How fast and how big saliency backbones are, side by side in one run: each in a process of its own, taking turns."""

from __future__ import annotations

import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from salcap.config import check_choice
from salcap.devices import check_device, synchronize
from salcap.evaluation.instruments import forget_peak_memory, memory_mib, percentiles
from salcap.frames import Frames
from salcap.saliency import SaliencyModel, create_saliency, list_saliency
from salcap.saliency.runtimes import RUNTIMES
from salcap.saliency.streams import StreamModel

BACKBONES = ("uva_net", "attention_center", "fastgaze", "glimpse", "spectral_residual")
STUDENTS = ("uva_net", "uva_net_32")
REFERENCE = "attention_center"
BATCH = 64
FRAME_SIZE = (360, 640)
ROUNDS = 5
_SECONDS_A_TURN = 0.15
_SECONDS_A_CALL = 2.0  # slower backbones get fewer frames than `BATCH`
_FRAMES_PER_SECOND = 5  # of the clip
_NO_SIZE = (64, 64)  # frames for backbones that have no input size of their own
_MATMUL_SIDE = 1024

MEASURES = {
    "network_1": "one frame at the network's input size, the network alone",
    "network_64": f"{BATCH} such frames in one call",
    "frames_1": "one frame of 360x640 uint8: resize, network, normalised map at the network's resolution",
    "frames_64": f"{BATCH} such frames in one call, each on its own",
    "clip_64": f"{BATCH} such frames as a clip with times (backbones with a temporal branch)",
}


@dataclass(frozen=True)
class BenchmarkRow:
    """One backbone's figures.

    Attributes:
        runtime: of a student; None for others.
        frames_per_second: measure (see `MEASURES`) -> frames over the median time of a call.
        latency_ms: "network_1" and "frames_1" -> {"p50", "p95", "calls"}.
        batch: frames of a call of the measures of 64; fewer where 64 would take longer than two seconds.
        parameters: None where they are not torch's.
        file_bytes: of the weights; None where there are none.
        peak_memory_mib: rise of the process's peak from before the backbone is made to after all measures; the frames
            themselves not counted; on CUDA the device's, those that are there counted. None where the system does not
            tell.
        macs: multiply-adds of convolutions and matrix products for one frame at the input size, BatchNorm and
            activations not counted; None where they are not torch's.
        roofline_frames_per_second: the measured peak of the CPU's matrix product over ``macs``; None elsewhere.
        roofline_share: of it, reached by "network_64".
        times_reference: measure -> times as fast as attention_center; None where that was not measured.
    """

    name: str
    runtime: str | None
    input_size: tuple[int, int]
    batch: int
    frames_per_second: dict[str, float]
    latency_ms: dict[str, dict[str, float]]
    parameters: int | None
    file_bytes: int | None
    peak_memory_mib: float | None
    macs: int | None
    roofline_frames_per_second: float | None
    roofline_share: float | None
    times_reference: dict[str, float] | None


@dataclass(frozen=True)
class SaliencyBenchmark:
    """All rows of a run, and what could not be run: name -> reason.

    Attributes:
        matmul_peak_gmacs: of the CPU in float32; None on other devices, where networks run in other precisions too.
    """

    device: str
    threads: int
    frame_size: tuple[int, int]
    matmul_peak_gmacs: float | None
    rows: list[BenchmarkRow]
    missing: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"benchmark": "saliency", **asdict(self)}


@dataclass(frozen=True)
class _Candidate:
    label: str
    saliency: str
    options: dict[str, Any]
    device: torch.device


def benchmark_saliency(
    names: Sequence[str] = BACKBONES,
    checkpoint: str | None = None,
    rounds: int = ROUNDS,
    progress: Callable[[str], object] = lambda line: None,
    device: str | int | torch.device | None = None,
) -> SaliencyBenchmark:
    """Measure backbones; students once for each runtime. Nothing is downloaded.

    Every backbone warms up first; then, in each round, all take their turn in every measure, so that what else the
    machine does hits all alike. Times are medians over all rounds.

    Args:
        checkpoint: trained weights of the students in ``names``; None for those that come with salcap.
        progress: called with a line for each step.
        device: where torch's networks run, by default the CPU; those of LiteRT and ONNX files stay there. Frames come
            from the CPU, as from a video.

    Raises:
        ValueError: unknown names, no name, fewer than one round, or a device that is not here.
    """
    check_device(device)
    device = torch.device("cpu" if device is None else device)
    if not names or rounds < 1:
        raise ValueError(f"expected at least one backbone and one round, got {list(names)} and {rounds}")
    for name in names:
        if ".py:" not in name:  # a user's file
            check_choice("saliency backbone", name, list_saliency())
    candidates = [candidate for name in names for candidate in _candidates(name, checkpoint, device)]
    context, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    workers: dict[str, Connection] = {}
    try:
        for candidate in candidates:
            here, there = context.Pipe()
            context.Process(target=_work, args=(there, candidate, threads), daemon=True).start()
            there.close()
            workers[candidate.label] = here
        facts, missing = {}, {}
        for label, worker in list(workers.items()):
            progress(f"{label}: warming up")
            try:
                facts[label] = _ask(worker, "prepare")
            except (ImportError, OSError) as error:
                missing[label] = str(error)
                workers.pop(label).close()
        times: dict[str, dict[str, list[float]]] = {label: {} for label in workers}
        peak = _matmul_gmacs() if device.type == "cpu" else None
        for number in range(rounds):
            progress(f"round {number + 1} of {rounds}")
            for measure in MEASURES:
                for label, worker in workers.items():
                    if measure in facts[label]["batch_of"]:
                        times[label].setdefault(measure, []).extend(_ask(worker, "measure", measure))
            peak = peak and max(peak, _matmul_gmacs())
        for label, worker in workers.items():
            facts[label] |= _ask(worker, "finish")
    finally:
        for worker in workers.values():
            worker.close()  # which ends its process
    speeds = {label: _speeds(times[label], facts[label]["batch_of"]) for label in workers}
    rows = [
        _row(candidate, facts[candidate.label], times[candidate.label], speeds[candidate.label], speeds, peak)
        for candidate in candidates
        if candidate.label in workers
    ]
    return SaliencyBenchmark(str(device), threads, FRAME_SIZE, peak, rows, missing)


def count_macs(model: SaliencyModel, size: tuple[int, int]) -> int | None:
    """Multiply-adds of a backbone's convolutions and matrix products for one frame of (height, width) ``size``.

    None for a backbone without torch parameters, whose work torch does not see.
    """
    if not any(True for _ in model.parameters()):
        return None
    pixels = torch.zeros(1, 3, *size, device=model.device)
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:  # with gradients students run in torch
        model(pixels)
    return counter.get_total_flops() // 2


def _candidates(name: str, checkpoint: str | None, device: torch.device) -> list[_Candidate]:
    if name not in STUDENTS:
        return [_Candidate(name, name, {}, device)]
    options = {} if checkpoint is None else {"checkpoint": checkpoint}
    # elsewhere than on the CPU "auto" is a precision of its own, and the other runtimes do not run
    runtimes = [r for r in RUNTIMES if r != "auto"] if device.type == "cpu" else ["auto", "torch"]
    return [_Candidate(f"{name} [{r}]", name, {**options, "runtime": r}, device) for r in runtimes]


def _ask(worker: Connection, *command: str) -> Any:
    worker.send(command)
    answer = worker.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _work(connection: Connection, candidate: _Candidate, threads: int) -> None:
    """A process of one backbone: answers commands until the other side hangs up."""
    torch.set_num_threads(threads)
    os.environ["SALCAP_OFFLINE"] = "1"  # a benchmark downloads nothing
    backbone = None
    while True:
        try:
            command, *arguments = connection.recv()
        except EOFError:
            return
        try:
            backbone = backbone or _Backbone(candidate)
            answer = getattr(backbone, command)(*arguments)
        except Exception as error:
            known = (ImportError, OSError, ValueError, TypeError)
            kind = next((kind for kind in known if isinstance(error, kind)), RuntimeError)
            answer = kind(f"{candidate.label}: {error}" if kind is RuntimeError else str(error))
        connection.send(answer)


class _Backbone:
    """One backbone with the frames that it is measured on."""

    def __init__(self, candidate: _Candidate) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (BATCH, *FRAME_SIZE, 3)
        self.frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)
        forget_peak_memory()  # the peak so far was that of the imports
        self._memory_before = memory_mib("VmRSS")
        self.model = create_saliency(candidate.saliency, **candidate.options).eval().to(candidate.device)
        self.size = input_size_of(self.model)
        self.pixels = torch.rand(BATCH, 3, *self.size, generator=generator).to(candidate.device)
        self.batch = BATCH

    @torch.no_grad()
    def prepare(self) -> dict[str, Any]:
        """Warm up, and choose how many frames a call takes."""
        for measure in ("frames_1", "network_1", "frames_1"):
            seconds = self._time(measure)
        self.batch = max(1, min(BATCH, math.floor(_SECONDS_A_CALL / seconds)))
        batch_of = {name: 1 if name.endswith("_1") else self.batch for name in MEASURES}
        if not isinstance(self.model, StreamModel):
            del batch_of["clip_64"]
        for measure in batch_of:
            self._time(measure)
        return {"input_size": self.size, "batch": self.batch, "batch_of": batch_of}

    @torch.no_grad()
    def measure(self, name: str) -> list[float]:
        times = [self._time(name)]
        while sum(times) < _SECONDS_A_TURN:
            times.append(self._time(name))
        return times

    def finish(self) -> dict[str, Any]:
        after, before = memory_mib("VmHWM"), self._memory_before
        if self.model.device.type == "cuda":
            after, before = torch.cuda.max_memory_allocated(self.model.device) / 2**20, 0.0
        parameters = sum(weight.numel() for weight in self.model.parameters())
        return {
            "peak_memory_mib": None if after is None or before is None else after - before,
            "parameters": parameters or None,
            "file_bytes": _file_bytes(self.model),
            "macs": count_macs(self.model, self.size),
        }

    def _time(self, measure: str) -> float:
        count = 1 if measure.endswith("_1") else self.batch
        frames = self.frames[:count]
        clip = Frames(frames, torch.arange(count) / _FRAMES_PER_SECOND)
        pixels = self.pixels[:count]
        start = time.perf_counter()
        if measure.startswith("network"):
            self.model(pixels)
        else:
            self.model.predict(clip if measure == "clip_64" else frames, "native")
        synchronize(self.model.device)
        return time.perf_counter() - start


def input_size_of(model: SaliencyModel) -> tuple[int, int]:
    """(height, width) that a backbone works at; 64x64 of one that states none."""
    size = getattr(model, "input_size", None) or getattr(model, "size", None) or _NO_SIZE
    return int(size[0]), int(size[1])


def _file_bytes(model: SaliencyModel) -> int | None:
    path = getattr(model, "weights_path", None)
    if path is not None:
        return Path(path).stat().st_size
    if not any(True for _ in model.parameters()):
        return None
    from safetensors.torch import save

    return len(save({name: weight.contiguous() for name, weight in model.state_dict().items()}))


def _matmul_gmacs() -> float:
    """Multiply-adds a second, in thousand millions, of the best of a few matrix products in float32."""
    side = torch.rand(_MATMUL_SIDE, _MATMUL_SIDE)

    def once() -> float:
        start = time.perf_counter()
        torch.mm(side, side)
        return time.perf_counter() - start

    return _MATMUL_SIDE**3 / min(once() for _ in range(6)) / 1e9


def _speeds(times: dict[str, list[float]], batch_of: dict[str, int]) -> dict[str, float]:
    return {measure: batch_of[measure] / statistics.median(seconds) for measure, seconds in times.items()}


def _row(
    candidate: _Candidate,
    facts: dict[str, Any],
    times: dict[str, list[float]],
    speeds: dict[str, float],
    all_speeds: dict[str, dict[str, float]],
    peak_gmacs: float | None,
) -> BenchmarkRow:
    bound = peak_gmacs * 1e9 / facts["macs"] if facts["macs"] and peak_gmacs else None
    reference = all_speeds.get(REFERENCE)
    return BenchmarkRow(
        name=candidate.label,
        runtime=candidate.options.get("runtime"),
        input_size=facts["input_size"],
        batch=facts["batch"],
        frames_per_second=speeds,
        latency_ms={name: _latency(times[name]) for name in ("network_1", "frames_1")},
        parameters=facts["parameters"],
        file_bytes=facts["file_bytes"],
        peak_memory_mib=facts["peak_memory_mib"],
        macs=facts["macs"],
        roofline_frames_per_second=bound,
        roofline_share=None if bound is None else speeds["network_64"] / bound,
        times_reference=reference and {name: speeds[name] / reference[name] for name in speeds if name in reference},
    )


def _latency(seconds: list[float]) -> dict[str, float]:
    return {name: second * 1e3 for name, second in percentiles(seconds).items()} | {"calls": len(seconds)}
