"""`salcap.compare`: what the arms of a comparison came to, against each other."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from salcap.datasets.captioned_videos import CaptionedItem, CaptionedSet
from salcap.datasets.registry import load_captioned_set
from salcap.evaluation.arm_records import arm_records
from salcap.evaluation.bootstrap import DRAWS, Difference, paired_bootstrap
from salcap.evaluation.captions import DEFAULT_METRICS, NOT_ASKED, SCORES, ScoreReport, bleu_of_counts, score_reports
from salcap.evaluation.compare import (
    CONTROLS,
    NONE,
    Arm,
    ArmRun,
    Observer,
    Reader,
    arm_pipeline,
    list_arms,
    run_arms,
)
from salcap.evaluation.evaluate import describe_runs
from salcap.evaluation.faithfulness import Faithfulness, FaithfulnessMeter
from salcap.evaluation.instruments import percentiles
from salcap.saliency import SaliencyModel, create_saliency
from salcap.saliency_captioner import SaliencyCaptioner
from salcap.stills import read_still
from salcap.video import read_frames

SALIENCY = ("none", "uniform", "random", "center", "spectral_residual", "uva_net", "attention_center")
POLICIES = ("foveate", *CONTROLS)
KEEP_RATIOS = (0.25, 0.5, 1.0)
TEACHER = "attention_center"


@dataclass(frozen=True)
class ComparedArm:
    """One row.

    Attributes:
        visual_tokens: mean over the clips.
        scores: of the whole set, of `salcap.evaluation.captions.SCORES`.
        against: baseline -> score -> how far this arm is from that baseline's; the baselines are "none", "teacher" (the
            arm with its maps and else the same settings; for a control with the first policy that looks at maps), and
            the controls "random" and "pool" of the same keep ratio.
        verdicts: baseline -> what that says, in words.
        ms: stage -> {"p50", "p95"} over the clips; "total" leaves reading out.
        time_saved: 1 - the median over the clips of the total over that of the arm "none".
        peak_memory_mib: rise within one batch; None where the system does not tell.
    """

    arm: Arm
    visual_tokens: float
    scores: dict[str, float | None]
    against: dict[str, dict[str, Difference]]
    verdicts: dict[str, str]
    ms: dict[str, dict[str, float]]
    time_saved: float
    peak_memory_mib: float | None
    captions: dict[str, str] = field(repr=False)


@dataclass(frozen=True)
class Comparison:
    """All rows of a run.

    Attributes:
        failures: id -> why a clip is in no row.
        missing: backbone -> why it is in no row.
        missing_scores: score -> why it could not be computed.
        draws: of the paired bootstrap behind each interval.
        faithfulness: backbone -> deletion faithfulness of its maps; empty where it was not asked for.
    """

    dataset: str
    model: str
    num_clips: int
    teacher: str
    device: str
    dtype: str
    threads: int
    draws: int
    rows: list[ComparedArm]
    faithfulness: dict[str, Faithfulness]
    failures: dict[str, str]
    missing: dict[str, str]
    missing_scores: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


def compare(
    dataset: str | CaptionedSet,
    root: str | Path | None = None,
    model: Any = "salcap-mini",
    processor: Any = None,
    *,
    split: str | None = None,
    saliency: Sequence[str] = SALIENCY,
    mode: Sequence[str] = ("prune",),
    policy: Sequence[str] = POLICIES,
    keep_ratio: Sequence[float] = KEEP_RATIOS,
    teacher: str = TEACHER,
    limit: int | None = None,
    batch_size: int = 8,
    num_frames: int | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    draws: int = DRAWS,
    faithfulness: int = 0,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    records: str | Path | None = None,
    observers: Sequence[Observer] = (),
    progress: Callable[[float, float], object] = lambda count, total: None,
    **generation: Any,
) -> Comparison:
    """Caption a data set in every combination of the settings, in turns, and compare quality and time.

    Args:
        dataset, root, split: a set, or what `salcap.datasets.registry.load_captioned_set` makes one of. Clips that
            have no file are told in ``failures``.
        model, processor, revision, device, dtype: see `SaliencyCaptioner.from_pretrained`.
        saliency: registered backbones; one whose weights are not here is reported in ``missing``.
        mode, policy, keep_ratio: see `Weighting`; combined as `salcap.evaluation.compare.list_arms` says.
        teacher: the backbone that the others are held against.
        limit: only the first clips.
        num_frames: of each clip; None: 8, of photographs 1, or as many as the model takes.
        batch_size: clips that an arm captions together before the next arm's turn.
        metrics: see `salcap.score_captions`.
        draws: of the bootstrap.
        faithfulness: how many of the clips to measure deletion faithfulness on.
        records: folder in which each arm's captions and times, and the faithfulness of clips, are kept as they come.
            The same call goes on from them, however an earlier one was ended; what failed is tried again.
        observers, progress: see `salcap.evaluation.compare.run_arms`.
        generation: keyword arguments of ``transformers``' generate.

    Returns:
        A row an arm, with intervals of its scores' differences from none, the teacher and the controls.

    Raises:
        ValueError: an unknown name, settings that the model refuses or that are not those of the ``records``, or no
            clip that could be captioned.
    """
    if isinstance(dataset, str):
        if root is None:
            raise ValueError(f"dataset {dataset!r} needs root, the folder that it lies in")
        dataset = load_captioned_set(dataset, root, split)
    dataset = dataset.first(limit)
    if teacher not in (TEACHER, *saliency):
        raise ValueError(f"teacher {teacher!r} is none of saliency, {', '.join(saliency)}")
    num_frames = dataset.resolve_num_frames(num_frames)
    captioner = SaliencyCaptioner.from_pretrained(
        model, processor, saliency="uniform", mode="none", revision=revision, device=device, dtype=dtype
    )
    backbones, missing = _load(saliency)
    if faithfulness and not (backbones and "prune" in captioner.captioner.modes):
        raise ValueError(
            f"faithfulness is measured by pruning with a backbone's maps, got saliency {list(saliency)} for"
            f" {captioner.captioner.name} with modes {sorted(captioner.captioner.modes)}"
        )
    arms = list_arms(["none", *backbones], mode, policy, keep_ratio)
    frames = captioner.resolve_num_frames(num_frames)
    clips = [(item.id, _reader(item, dataset.stills, frames)) for item in dataset.present]
    request = {"num_frames": num_frames, "batch_size": batch_size, **generation}
    with ExitStack() as stack:
        files, found = None, None
        if records is not None:
            ways = [arm_pipeline(captioner, arm, backbones.get(arm.saliency or "", captioner.saliency)) for arm in arms]
            settings = dict(zip(arms, describe_runs(ways, dataset, **request), strict=True))
            files, found = stack.enter_context(arm_records(records, settings, dataset.times_sha256))
        meter = FaithfulnessMeter(faithfulness, found)
        runs, failures = run_arms(
            captioner,
            arms,
            backbones,
            clips,
            observers=[meter, *observers],
            files=files,
            progress=progress,
            **request,
        )
    references = {item.id: list(item.captions) for item in dataset.present}
    rows, missing_scores = judge(runs, references, teacher, metrics, draws)
    network = captioner.captioner.model  # type: ignore[attr-defined]
    return Comparison(
        dataset=dataset.name if dataset.split is None else f"{dataset.name} {dataset.split}",
        model=captioner.captioner.name,
        num_clips=len(rows[0].captions),
        teacher=teacher,
        device=str(network.device),
        dtype=str(network.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        draws=draws,
        rows=rows,
        faithfulness=meter.results(draws),
        failures=dataset.missing | failures,
        missing=missing,
        missing_scores=missing_scores,
    )


def judge(
    runs: Mapping[Arm, ArmRun],
    references: Mapping[str, list[str]],
    teacher: str = TEACHER,
    metrics: Sequence[str] = DEFAULT_METRICS,
    draws: int = DRAWS,
) -> tuple[list[ComparedArm], dict[str, str]]:
    """Score the arms, one of which is "none", and hold each against its baselines.

    Args:
        runs: with captions of the same clips.
        references: id -> what people wrote; ids without caption are left out.

    Returns:
        The rows, and score -> reason where a metric could not run.

    Raises:
        ValueError: no clip was captioned.
    """
    keys = list(runs[NONE].captions)
    if not keys:
        raise ValueError("no clip could be captioned in all arms")
    truths = {key: references[key] for key in keys}
    texts = {arm: {key: str(run.captions[key].text) for key in keys} for arm, run in runs.items()}
    reports = dict(zip(runs, score_reports(truths, list(texts.values()), metrics), strict=True))
    rows = []
    for arm, run in runs.items():
        against = {
            name: _differences(reports[arm], reports[other], keys, draws)
            for name, other in _baselines(arm, runs, teacher).items()
        }
        captions = [run.captions[key] for key in keys]
        stages = [_stages(caption.timings) for caption in captions]
        plain = [_stages(runs[NONE].captions[key].timings)["total"] for key in keys]
        shares = [ms["total"] / other for ms, other in zip(stages, plain, strict=True)]
        rows.append(
            ComparedArm(
                arm=arm,
                visual_tokens=float(np.mean([caption.visual_tokens for caption in captions])),
                scores=reports[arm].scores,
                against=against,
                verdicts={name: verdict(found) for name, found in against.items()},
                ms={stage: percentiles([ms.get(stage, 0.0) for ms in stages]) for stage in stages[0]},
                time_saved=1 - statistics.median(shares),
                peak_memory_mib=run.peak_memory_mib,
                captions=texts[arm],
            )
        )
    return rows, {n: why for r in reports.values() for n, why in r.reasons.items() if why != NOT_ASKED}


def verdict(differences: Mapping[str, Difference]) -> str:
    """Which scores are better or worse than chance explains, in words."""
    found = {
        word: [name for name, d in differences.items() if d.is_significant and (d.value > 0) == (word == "better")]
        for word in ("better", "worse")
    }
    parts = [f"{word}: {', '.join(names)}" for word, names in found.items() if names]
    return "; ".join(parts) or "no significant difference"


def _load(names: Iterable[str]) -> tuple[dict[str, SaliencyModel], dict[str, str]]:
    backbones, missing = {}, {}
    for name in names:
        if name != "none":
            try:
                backbones[name] = create_saliency(name)
            except (ImportError, OSError) as error:
                missing[name] = str(error)
    return backbones, missing


def _reader(item: CaptionedItem, stills: bool, num_frames: int) -> Reader:
    assert item.path is not None
    if stills:
        return partial(read_still, item.path)
    return partial(read_frames, item.path, num_frames, item.start_seconds, item.end_seconds)


def _baselines(arm: Arm, arms: Iterable[Arm], teacher: str) -> dict[str, Arm]:
    """Baseline -> the arm that this one is held against."""
    found = {"none": NONE}
    for other in arms:
        alike = (other.mode, other.keep_ratio) == (arm.mode, arm.keep_ratio)
        if other.is_control and other.keep_ratio == arm.keep_ratio:
            found[str(other.policy)] = other
        elif other.saliency == teacher and alike and (arm.is_control or other.policy == arm.policy):
            found.setdefault("teacher", other)
    return {name: other for name, other in found.items() if other != arm}


def _differences(ours: ScoreReport, theirs: ScoreReport, keys: Sequence[str], draws: int) -> dict[str, Difference]:
    """By score; METEOR's is of the mean over the clips, which is close to the score of the set but not the same."""
    found: dict[str, Difference] = {}
    for name in SCORES:
        if name not in ours.per_caption or name not in theirs.per_caption:
            continue
        is_bleu = name.startswith("bleu")
        values: list[np.ndarray] = []
        for report in (ours, theirs):
            per_clip: Mapping[str, Any] = report.bleu_counts if is_bleu else report.per_caption[name]
            values.append(np.array([per_clip[key] for key in keys]))
        score = partial(_bleu, int(name[-1])) if is_bleu else None
        found[name] = paired_bootstrap(values[0], values[1], score, draws)
    return found


def _bleu(order: int, counts: np.ndarray) -> np.ndarray:
    return bleu_of_counts(counts)[:, order - 1]


def _stages(timings: Mapping[str, float]) -> dict[str, float]:
    ms = {stage.removesuffix("_ms"): value for stage, value in timings.items() if stage != "read_ms"}
    return ms | {"total": sum(ms.values())}
