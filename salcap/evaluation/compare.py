"""Captioning without saliency, with controls, with student and with teacher maps, on the same clips in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from salcap.caption import Caption
from salcap.config import MODES, POLICIES, check_choice
from salcap.evaluation.instruments import peak_rise_mib
from salcap.frames import Frames
from salcap.records import RecordFile, read_records
from salcap.saliency import SaliencyModel, create_saliency
from salcap.saliency.model import FramesLike
from salcap.saliency_captioner import SaliencyCaptioner

CONTROLS = ("random", "pool")  # policies that look at no map

Reader = Callable[..., Frames]  # takes `read_frames`' options for the size


@dataclass(frozen=True)
class Arm:
    """One way of captioning.

    Attributes:
        saliency: backbone; None where no map is looked at.
        policy: None where the mode does not prune.
    """

    saliency: str | None = None
    mode: str = "none"
    policy: str | None = None
    keep_ratio: float = 1.0

    @property
    def name(self) -> str:
        """What tables and records call it."""
        how = self.mode if self.policy is None else f"{self.policy} {self.keep_ratio:g}"
        if self.policy is not None and self.mode != "prune":
            how = f"{self.mode} {how}"
        return how if self.saliency is None else f"{self.saliency} {how}"

    @property
    def is_control(self) -> bool:
        """Whether it drops tokens without looking at a map."""
        return self.mode == "prune" and self.policy in CONTROLS


NONE = Arm()


@dataclass(frozen=True)
class ArmRun:
    """What an arm did.

    Attributes:
        captions: id -> what came of each clip that all arms could caption.
        peak_memory_mib: rise within the first batch; None where the system does not tell.
    """

    captions: dict[str, Caption]
    peak_memory_mib: float | None


class Observer(Protocol):
    """Looks at the clips after the arms, outside of what is timed."""

    def __call__(self, clip: Clip, pipelines: Mapping[Arm, SaliencyCaptioner], request: Mapping[str, Any]) -> None:
        """Called for each clip that all arms captioned; a pipeline's maps of it are still at hand.

        Args:
            request: the keyword arguments of `SaliencyCaptioner.caption`.
        """


def list_arms(
    saliency: Sequence[str], mode: Sequence[str], policy: Sequence[str], keep_ratio: Sequence[float]
) -> list[Arm]:
    """The combinations that can differ in what they caption; the first is always "none".

    A control looks at no map, so there is one arm for each keep ratio. Mode "prune" with a keep ratio of 1 is "none".

    Raises:
        ValueError: an unknown mode or policy.
    """
    for way in mode:
        for part in way.split("+"):
            check_choice("mode", part, MODES)
    for choice in policy:
        check_choice("policy", choice, POLICIES)
    backbones = [name for name in saliency if name != "none"]
    arms = [NONE]
    for way in mode:
        if "prune" not in way.split("+"):
            arms += [Arm(name, way) for name in backbones if way != "none"]
            continue
        for kept in keep_ratio:
            for choice in policy:
                if way == "prune" and kept == 1:
                    continue
                blind = way == "prune" and choice in CONTROLS
                arms += [Arm(name, way, choice, kept) for name in ([None] if blind else backbones)]
    return list(dict.fromkeys(arms))


def run_arms(
    captioner: SaliencyCaptioner,
    arms: Sequence[Arm],
    backbones: Mapping[str, SaliencyModel],
    clips: Sequence[tuple[str, Reader]],
    *,
    batch_size: int = 8,
    num_frames: int | None = None,
    observers: Sequence[Observer] = (),
    files: Mapping[Arm, RecordFile] | None = None,
    progress: Callable[[float, float], object] = lambda count, total: None,
    **generation: Any,
) -> tuple[dict[Arm, ArmRun], dict[str, str]]:
    """Caption every clip in every arm; batch by batch the arms take turns, so that what else the machine does hits all.

    A clip is read once. A backbone's maps of it are made once, and their time counts for each arm that uses them.

    Args:
        captioner: has the settings that arms do not name (strength, zoom, seed, ...).
        backbones: those that the arms name.
        clips: id, and what reads it.
        num_frames: see `SaliencyCaptioner.caption`.
        observers: called in turn.
        files: where each arm's captions are kept. What they hold already is not captioned again, and its times count.
        progress: called after an arm's turn with how many clips were just done and how many there are to do in this
            run, in all arms being one.
        generation: keyword arguments of ``transformers``' generate.

    Returns:
        The arms' runs, and id -> reason for clips that could not be read, or not captioned in some arm.

    Raises:
        ValueError: settings that the captioner refuses.
    """
    device = captioner.saliency.device
    maps = {name: _Remembering(backbone.to(device)) for name, backbone in backbones.items()}
    no_map = _Remembering(create_saliency("uniform").to(device))
    pipelines = {arm: arm_pipeline(captioner, arm, maps[arm.saliency] if arm.saliency else no_map) for arm in arms}
    request = {"num_frames": num_frames, **generation}
    captions: dict[Arm, dict[str, Caption]] = {arm: {} for arm in arms}
    peaks: dict[Arm, float | None] = {}
    for arm, file in (files or {}).items():
        for record in read_records(file.path) if file.outcomes else ():
            captions[arm][record["id"]] = Caption.from_dict(record)
            peaks.setdefault(arm, record["peak_memory_mib"])
    total = sum(key not in captions[arm] for key, _ in clips for arm in arms) / len(arms)
    failures: dict[str, str] = {}
    warm, arms = False, list(arms)
    for start in range(0, len(clips), batch_size):
        batch = [Clip(key, read) for key, read in clips[start : start + batch_size]]
        todo = {arm: [clip for clip in batch if clip.key not in captions[arm]] for arm in arms}
        needed = [clip for clip in batch if any(clip in some for some in todo.values())]
        readable = [clip for clip in needed if clip.can_be_read(pipelines.values(), failures)]
        if readable and not warm:
            warm = True
            for arm, pipeline in pipelines.items():
                peak = peak_rise_mib(partial(_caption, pipeline, readable, request), device)
                peaks.setdefault(arm, peak)
                pipeline.saliency.forget()  # type: ignore[operator]
        for arm in arms:
            turn = [clip for clip in todo[arm] if clip in readable]
            results = _caption(pipelines[arm], turn, request) if turn else []
            for clip, result in zip(turn, results, strict=True):
                captions[arm][clip.key] = result
                if result.text is None:
                    failures.setdefault(clip.key, f"{arm.name}: {result.error}")
            if files is not None:
                _keep(files[arm], turn, results, peaks.get(arm))
            progress(len(todo[arm]) / len(arms), total)
        for clip in batch:
            for observe in observers if clip.key not in failures else ():
                observe(clip, pipelines, request)
        arms = [*arms[1:], arms[0]]
        for pipeline in pipelines.values():
            pipeline.saliency.forget()  # type: ignore[operator]
    keys = [key for key, _ in clips if key not in failures]
    runs = {arm: ArmRun({key: captions[arm][key] for key in keys}, peaks.get(arm)) for arm in pipelines}
    return runs, failures


def arm_pipeline(captioner: SaliencyCaptioner, arm: Arm, maps: SaliencyModel) -> SaliencyCaptioner:
    """The captioner as an arm has it.

    Args:
        maps: the arm's backbone; any, where it looks at no map.
    """
    options: dict[str, Any] = {"mode": arm.mode}
    if arm.policy is not None:
        options |= {"policy": arm.policy, "keep_ratio": arm.keep_ratio}
    weighted = captioner.with_weighting(**options)
    return SaliencyCaptioner(weighted.captioner, maps, weighted.weighting)


def _keep(file: RecordFile, clips: Sequence[Clip], captions: Sequence[Caption], peak: float | None) -> None:
    for clip, caption in zip(clips, captions, strict=True):
        file.write({"id": clip.key, **caption.to_dict(), "peak_memory_mib": peak})
    file.sync()


def _caption(pipeline: SaliencyCaptioner, clips: Sequence[Clip], request: Mapping[str, Any]) -> list[Caption]:
    frames = [clip.frames(pipeline) for clip in clips]
    results = pipeline.caption_batch(frames, **request)
    if pipeline.weighting.mode != "none":
        for clip, result in zip(frames, results, strict=True):
            if result.error is None:
                result.timings["saliency_ms"] = pipeline.saliency.made_ms(clip)  # type: ignore[operator]
    return results


class Clip:
    """A clip that is read once for all pipelines that want it in one size."""

    def __init__(self, key: str, read: Reader) -> None:
        self.key, self.read = key, read
        self._frames: dict[str, Frames] = {}

    def frames(self, pipeline: SaliencyCaptioner) -> Frames:
        """The clip's frames at the size that a pipeline reads, from memory where another one read that."""
        options = pipeline.read_options
        if str(options) not in self._frames:
            self._frames[str(options)] = replace(self.read(**options), source=self.key)
        return self._frames[str(options)]

    def can_be_read(self, pipelines: Iterable[SaliencyCaptioner], failures: dict[str, str]) -> bool:
        """Read it; else add the reason to ``failures``."""
        try:
            for pipeline in pipelines:
                self.frames(pipeline)
        except Exception as error:  # whatever a reader raises concerns this clip only
            failures[self.key] = str(error) or type(error).__name__
        return self.key not in failures


class _Remembering(SaliencyModel):
    """A backbone that makes the maps of frames once, and tells how long that took."""

    def __init__(self, backbone: SaliencyModel) -> None:
        super().__init__()
        self.backbone, self.name = backbone, backbone.name
        self._made: dict[tuple[str | None, torch.Size], tuple[Tensor, float]] = {}

    def predict(self, frames: FramesLike, size: tuple[int, int] | Literal["native"] | None = None) -> Tensor:
        assert isinstance(frames, Frames)
        key = frames.source, frames.pixels.shape
        if key not in self._made:
            started = time.perf_counter()
            maps = self.backbone.predict(frames, size)
            self._made[key] = maps, (time.perf_counter() - started) * 1000
        return self._made[key][0]

    def made_ms(self, frames: Frames) -> float:
        return self._made[frames.source, frames.pixels.shape][1]

    def forget(self) -> None:
        self._made.clear()
