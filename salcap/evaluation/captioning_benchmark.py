"""What a caption costs by stage: unmodified, and with fewer patches by saliency; the arms take turns in one process."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch.utils.flop_counter import FlopCounterMode

from salcap.devices import check_device
from salcap.evaluation.instruments import peak_rise_mib, percentiles
from salcap.evaluation.saliency_benchmark import count_macs, input_size_of
from salcap.saliency import create_saliency
from salcap.saliency_captioner import SaliencyCaptioner

KEEP_RATIOS = (1.0, 0.75, 0.5, 0.25)
STUDENT = "uva_net"
TEACHER = "attention_center"
TEACHER_KEEP_RATIO = 0.5
DEFAULT_SHAPE = "git-base"
VIDEO = "data/sample.mp4"
NUM_FRAMES = 6
NEW_TOKENS = 16
ROUNDS = 5

STAGES = {
    "read": "frames from the file; not in the total",
    "saliency": "the map, from resizing on",
    "preprocess": "the model's own resizing and normalising",
    "encode": "vision encoder and projector, and before them the choice of patches",
    "prefill": "prompt, and the language model up to the first new token",
    "decode": "the other tokens, one after another, and the text of them",
    "other": "what is left of the total",
}


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of shapes (batch, heads, length, width); keys may have fewer heads, which older versions of torch refuse."""
    batch, heads, length, width = query
    return int(2 * batch * heads * length * key[-2] * (width + value[-1]))


_ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}"): _attention_flops
    for kernel in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
}


@dataclass(frozen=True)
class CaptioningRow:
    """One arm's ledger.

    Attributes:
        name: "unmodified", or the backbone and the keep ratio.
        saliency, keep_ratio: None for the unmodified model.
        visual_tokens: that the language model reads, of the whole clip.
        runs_ms: for each round milliseconds by stage (see `STAGES`), and their sum but for "read" as "total".
        ms: over the rounds, of each stage and the total {"p50", "p95"}; medians of stages need not sum to the median
            total.
        ratio: total over that of the unmodified model in the same round; median of the rounds.
        flops: of one untimed run, two for a multiply-add of matrix products, convolutions and attention: "encode",
            "prefill", "decode", and "saliency", which is None where the backbone is not torch's and leaves out what
            a backbone does between frames.
        peak_memory_mib: rise over what is there before one untimed run, weights among it; None where the system does
            not tell.
    """

    name: str
    saliency: str | None
    keep_ratio: float | None
    visual_tokens: int
    runs_ms: list[dict[str, float]]
    ms: dict[str, dict[str, float]]
    ratio: float
    flops: dict[str, int | None]
    peak_memory_mib: float | None


@dataclass(frozen=True)
class CaptioningBenchmark:
    """All arms of a run.

    Attributes:
        random_weights_of: what the shape copies where weights are random, so that only costs mean anything; None for
            a model's own weights.
        break_even_keep_ratio: see `break_even`, of the student.
        student_over_teacher: total of the student's arm over the teacher's of the same keep ratio, median of the
            rounds; None where the teacher is missing.
        missing: arm -> reason.
    """

    model: str
    random_weights_of: str | None
    device: str
    dtype: str
    threads: int
    video: str
    num_frames: int
    new_tokens: int
    policy: str
    rows: list[CaptioningRow]
    break_even_keep_ratio: float | None
    student_over_teacher: float | None
    missing: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"benchmark": "captioning", **asdict(self)}


def benchmark_captioning(
    model: Any = None,
    processor: Any = None,
    *,
    shape: str | None = None,
    video: str | os.PathLike[str] = VIDEO,
    num_frames: int = NUM_FRAMES,
    new_tokens: int = NEW_TOKENS,
    policy: str | None = None,
    teacher: str = TEACHER,
    rounds: int = ROUNDS,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    progress: Callable[[str], object] = lambda line: None,
) -> CaptioningBenchmark:
    """Measure a captioner unmodified (mode "none"), at all `KEEP_RATIOS` with the student, and once with a teacher.

    Each arm is the whole way from file to text, with equally many new tokens. All warm up first; then, in each round,
    every arm captions once, each round beginning with another, so that what else the machine does hits all alike.

    Args:
        model: hub id, folder, or a loaded model with ``processor``; see `salcap.captioners.load_captioner`.
        shape: of `salcap.captioners.model_shapes.MODEL_SHAPES`, instead of a model; "git-base" where neither is given.
        policy: see `salcap.config.Weighting`; None takes the captioner's default.
        teacher: backbone beside the student; nothing is downloaded for it, a missing one is reported.
        progress: called with a line for each step.

    Raises:
        ValueError: model and shape, an unknown shape or policy, a device that is not here, a captioner that cannot
            prune, fewer than one round or token, or settings that do not fit the captioner.
        VideoDecodeError: the file gives no frame.
    """
    if model is not None and shape is not None:
        raise ValueError(f"give a model or a shape, got both: {model!r} and {shape!r}")
    if rounds < 1 or new_tokens < 1:
        raise ValueError(f"expected at least one round and one new token, got {rounds} and {new_tokens}")
    check_device(device)
    source = None
    if model is None:
        from salcap.captioners.model_shapes import MODEL_SHAPES, create_shape

        shape = shape or DEFAULT_SHAPE
        progress(f"{shape}: making random weights")
        with torch.device(torch.get_default_device() if device is None else device):
            model, processor = create_shape(shape, dtype)
        source = MODEL_SHAPES[shape].source
    options: dict[str, Any] = {"mode": "prune", "policy": policy, "device": device, "dtype": dtype}
    student = SaliencyCaptioner.from_pretrained(model, processor, saliency=STUDENT, keep_ratio=1.0, **options)
    request = {"num_frames": num_frames, "min_new_tokens": new_tokens, "max_new_tokens": new_tokens}

    unmodified = _Arm("unmodified", student.with_weighting(mode="none"), video, request)
    pruned = {k: _Arm(f"{STUDENT} {k}", student.with_weighting(keep_ratio=k), video, request) for k in KEEP_RATIOS}
    arms, taught, missing = [unmodified, *pruned.values()], None, {}
    try:
        with _offline():
            backbone = create_saliency(teacher).to(student.saliency.device)
    except (ImportError, OSError) as error:
        missing[teacher] = str(error)
    else:
        same = pruned[TEACHER_KEEP_RATIO].pipeline
        pipeline = SaliencyCaptioner(same.captioner, backbone, same.weighting)
        taught = _Arm(f"{teacher} {TEACHER_KEEP_RATIO}", pipeline, video, request)
        arms.append(taught)
    for each in arms:
        progress(f"{each.name}: warming up")
        each.warm_up()
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        first = number % len(arms)
        for each in arms[first:] + arms[:first]:
            each.measure()
    network = unmodified.network
    return CaptioningBenchmark(
        model=student.captioner.name if shape is None else shape,
        random_weights_of=source,
        device=str(network.device),
        dtype=str(network.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        video=str(video),
        num_frames=num_frames,
        new_tokens=new_tokens,
        policy=student.weighting.policy,
        rows=[each.row(unmodified) for each in arms],
        break_even_keep_ratio=break_even({keep: each.ratio(unmodified) for keep, each in pruned.items()}),
        student_over_teacher=None if taught is None else pruned[TEACHER_KEEP_RATIO].ratio(taught),
        missing=missing,
    )


def break_even(ratios: Mapping[float, float]) -> float | None:
    """The largest keep ratio at which the total is no more than unmodified: where the line through the nearest two
    measured ones crosses 1; None where the total is more at all of them.

    Args:
        ratios: keep ratio -> total over the unmodified model's.
    """
    falling = sorted(ratios, reverse=True)
    if ratios[falling[0]] <= 1:
        return falling[0]
    for above, below in pairwise(falling):
        if ratios[below] <= 1:
            return below + (above - below) * (1 - ratios[below]) / (ratios[above] - ratios[below])
    return None


class _Arm:
    """One setting, and what is measured of it."""

    def __init__(self, name: str, pipeline: SaliencyCaptioner, video: Any, request: dict[str, Any]) -> None:
        self.name, self.pipeline = name, pipeline
        self.captioner = cast(Any, pipeline.captioner)
        self.network = self.captioner.model
        self.caption = partial(pipeline.caption, video, **request)
        self.runs: list[dict[str, float]] = []

    def warm_up(self) -> None:
        """Run once as ever, once to count FLOPs and tokens, once for the memory."""
        self.caption()  # before the counter comes: what backbones convert themselves to at first must not see it
        with counting_flops(self.captioner):
            result = self.caption()
        self.visual_tokens = result.visual_tokens or 0
        self.flops: dict[str, int | None] = {"saliency": self._saliency_flops(len(result.frame_pts_seconds))}
        self.flops |= {stage: round(result.timings[f"{stage}_ms"]) for stage in ("encode", "prefill", "decode")}
        self.peak_memory_mib = peak_rise_mib(self.caption, self.network.device)

    def measure(self) -> None:
        started = time.perf_counter()
        timings = self.caption().timings
        wall = (time.perf_counter() - started) * 1000
        run = {stage: timings.get(f"{stage}_ms", 0.0) for stage in STAGES}
        run["other"] = wall - sum(run.values())
        self.runs.append(run | {"total": wall - run["read"]})

    def ratio(self, other: _Arm) -> float:
        """Median over the rounds of this arm's total over another's."""
        return statistics.median(run["total"] / its["total"] for run, its in zip(self.runs, other.runs, strict=True))

    def row(self, unmodified: _Arm) -> CaptioningRow:
        return CaptioningRow(
            name=self.name,
            saliency=self.pipeline.saliency.name if self._looks else None,
            keep_ratio=self.pipeline.weighting.keep_ratio if self._looks else None,
            visual_tokens=self.visual_tokens,
            runs_ms=self.runs,
            ms={stage: percentiles([run[stage] for run in self.runs]) for stage in self.runs[0]},
            ratio=self.ratio(unmodified),
            flops=self.flops,
            peak_memory_mib=self.peak_memory_mib,
        )

    @property
    def _looks(self) -> bool:
        return self.pipeline.weighting.mode != "none"

    def _saliency_flops(self, num_frames: int) -> int | None:
        if not self._looks:
            return 0
        macs = count_macs(self.pipeline.saliency, input_size_of(self.pipeline.saliency))
        return macs and 2 * macs * num_frames


@contextmanager
def counting_flops(captioner: Any) -> Iterator[FlopCounterMode]:
    """Within, a captioner measures its stages in FLOPs: by the counter in place of its clock."""
    trained = [weight for weight in captioner.model.parameters() if weight.requires_grad]
    captioner.model.requires_grad_(False)  # the counter breaks on views of weights that have gradients
    try:
        with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
            captioner.now_ms = counter.get_total_flops
            yield counter
    finally:
        vars(captioner).pop("now_ms", None)
        for weight in trained:
            weight.requires_grad_()


@contextmanager
def _offline() -> Iterator[None]:
    """A benchmark downloads nothing."""
    before = os.environ.get("SALCAP_OFFLINE")
    os.environ["SALCAP_OFFLINE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["SALCAP_OFFLINE"]
        else:
            os.environ["SALCAP_OFFLINE"] = before
