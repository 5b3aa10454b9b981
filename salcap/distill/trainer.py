"""``salcap distill``: runs the stages of a `Distillation`, and goes on from its last checkpoint when started again."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from salcap.distill.card import write_card
from salcap.distill.data import Batch, Clips, Stills
from salcap.distill.losses.see_little import choose_frames
from salcap.distill.methods import Context, create_method
from salcap.distill.motion import add_motion
from salcap.distill.networks import TeacherFeatures, create_student, create_teacher
from salcap.distill.settings import Distillation, StageSettings
from salcap.evaluation.saliency import evaluate_saliency, load_gaze
from salcap.optimisation import (
    LOG,
    Means,
    WeightAverage,
    append_log,
    cosine_schedule,
    read_checkpoint,
    write_checkpoint,
)

log = logging.getLogger(__name__)

_FIXED = ("output", "checkpoint_steps")  # settings that may change when a run goes on


class Distiller:
    """Trains a student. Every step draws from its own seed, so that a resumed run takes the path of one never stopped;
    on CUDA, whose sums have no fixed order, but for rounding.

    Args:
        progress: takes a line of text.
    """

    def __init__(self, settings: Distillation, progress: Callable[[str], None] = log.info) -> None:
        self.settings, self.progress = settings, progress
        self.output = Path(settings.output)
        self.output.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(
            mixed_precision=settings.mixed_precision,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.device = self.accelerator.device
        torch.manual_seed(settings.seed)
        self.student = create_student(settings.student)
        self.student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a quarter faster
        self.teachers = {name: create_teacher(spec).to(self.device) for name, spec in settings.teachers.items()}
        with self.accelerator.main_process_first():  # it prepares the arrays, the others read them
            self.stills = Stills(settings.data, self.student.input_size, progress)
            self.clips = Clips(settings.data.clips, settings.data, self.student.input_size)
        self.network: nn.Module = self.accelerator.prepare(_Network(self.student))
        for parameter in self.student.pretrained_parameters():
            parameter.requires_grad_(True)  # stages may freeze them, the average holds them all the same
        _check_labels(settings, self.stills.labelled)
        self.average = WeightAverage(self.student, settings.ema_decay)
        live = {name: (settings.teachers[name], model) for name, model in self.teachers.items()}
        features = TeacherFeatures(live, self.stills, Path(settings.data.cache), progress)
        self.context = Context(self.student, self.teachers, features, self._stills_pixels)

    def run(self) -> Path:
        """Train, and return the folder of the finished student (``output/model``)."""
        done = self._restore()
        for index, stage in enumerate(self.settings.stages):
            if index >= done["stage"]:
                self._run_stage(index, stage, done if index == done["stage"] else None)
        folder = self.output / "model"
        if self.accelerator.is_main_process:
            model = self.averaged()
            model.save_pretrained(folder)
            write_card(folder, model, self.settings, self._last_scores())
        self.accelerator.wait_for_everyone()
        return folder

    def averaged(self) -> Any:
        """A copy of the student with its averaged weights, ready to predict, on the CPU."""
        with self.average.applied():
            return copy.deepcopy(self.student).cpu().eval()

    def validate(self) -> dict[str, float | None]:
        """Scores of the averaged student on the validation sets."""
        scores: dict[str, float | None] = {}
        model = self.averaged()
        for source in self.settings.data.validation:
            items, split = load_gaze(source.dataset, source.root, source.split)
            result = evaluate_saliency(model, items, dataset=source.dataset, split=split, max_side=512)
            for metric in ("nss", "cc", "auc_judd"):
                value = result.scores[metric]
                scores[f"{source.dataset}_{metric}"] = None if value is None else round(value, 4)
        return scores

    # ---- stages

    def _run_stage(self, index: int, stage: StageSettings, resumed: dict[str, Any] | None) -> None:
        torch.manual_seed(self.settings.seed + index)  # of what methods initialise, whether the run was stopped or not
        methods = nn.ModuleDict(
            {name: create_method(name, self.context, options) for name, options in stage.losses.items()}
        ).to(self.device)
        main, alternate = self._optimizers(stage, methods)
        first = 0
        if resumed is not None and resumed["step"]:
            first = resumed["step"]
            methods.load_state_dict(resumed["methods"])
            main.load_state_dict(resumed["main"])
            if alternate is not None:
                alternate.load_state_dict(resumed["alternate"])
        rank = self.accelerator.process_index
        pool = np.flatnonzero(self.stills.labelled) if stage.images == "labelled" else np.arange(len(self.stills))
        if len(pool) == 0:
            raise ValueError("images 'labelled' needs a source with fixations")
        steps_per_epoch = max(1, len(pool) // stage.batch_size)
        names = "+".join(stage.losses)
        self.progress(
            f"stage {index} {names}: {len(pool)} images, {len(self.clips)} clips, steps {first}-{stage.steps}"
        )
        means = Means()
        for step in range(first, stage.steps):
            rng = np.random.default_rng((self.settings.seed, index, step, rank))
            torch.manual_seed(int(rng.integers(2**31)))
            batch = self._batch(stage, pool, rng)
            for optimizer in (main, alternate):
                for group in optimizer.param_groups if optimizer is not None else ():
                    share = cosine_schedule(step, stage.steps, stage.warmup_steps)
                    group["lr"] = group["rate"] * stage.learning_rate * share
            self.network.train()
            streams = self.network(batch.pixels, batch.pts_seconds)
            losses = {n: m(streams, batch, 1 + step // steps_per_epoch) for n, m in methods.items()}
            self.accelerator.backward(sum(methods[n].weight * loss for n, loss in losses.items()))
            self.accelerator.clip_grad_norm_(self._trained(methods), self.settings.clip_norm)
            main.step()
            main.zero_grad()
            if alternate is not None:
                self._alternate(alternate, methods, streams, batch)
            self.average.update()
            means.add({n: loss.item() for n, loss in losses.items()})
            done = step + 1
            if done % 200 == 0 or done == stage.steps:
                left = (stage.steps - done) / means.rate() / 60
                record = {"stage": index, "step": done, **means.means()}
                self._log(record, f"{means.rate():.2f} steps/s, {left:.0f} min left")
                means = Means()
            if done % self.settings.checkpoint_steps == 0 and done < stage.steps:
                self._checkpoint(index, done, methods, main, alternate)
        for name, partner in _partners(methods).items():
            if self.accelerator.is_main_process:
                partner.save_pretrained(self.output / "partners" / name)
        self._log({"stage": index, "methods": names, "scores": self.validate()})
        self._checkpoint(index + 1, 0, None, None, None)

    def _batch(self, stage: StageSettings, pool: np.ndarray, rng: np.random.Generator) -> Batch:
        size = max(2, stage.batch_size // self.accelerator.num_processes)
        if rng.random() >= stage.moving:
            return _to(self.stills.batch(self._choose(stage, pool, size, rng), rng), self.device)
        frames = stage.num_frames
        count = max(2, size // frames)
        if len(self.clips) and rng.random() < 0.5:
            clips = self.clips.batch(count, frames, rng)
        else:
            stills = self.stills.batch(self._choose(stage, pool, count, rng), rng)
            clips = add_motion(stills, frames, rng)
        clips = _to(clips, self.device)
        return clips if stage.seen_frames is None else clips.frames(choose_frames(frames, stage.seen_frames))

    def _choose(self, stage: StageSettings, pool: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
        if stage.labelled_share is None:
            return rng.choice(pool, size)
        known = self.stills.labelled[pool]
        num_labelled = round(size * stage.labelled_share)
        return np.concatenate((rng.choice(pool[known], num_labelled), rng.choice(pool[~known], size - num_labelled)))

    def _optimizers(self, stage: StageSettings, methods: nn.ModuleDict) -> tuple[Any, Any]:
        slow = {id(p) for p in self.student.pretrained_parameters()}
        for p in self.student.pretrained_parameters():
            p.requires_grad_(stage.pretrained_rate > 0)
        alternate = [p for m in methods.values() for p in m.alternate_parameters()]  # type: ignore[operator]
        apart = {id(p) for p in alternate}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for p in [*self.student.parameters(), *methods.parameters()]:
            if p.requires_grad and id(p) not in apart:
                rate = stage.pretrained_rate if id(p) in slow else 1.0
                groups.setdefault((rate, stage.weight_decay if p.dim() > 1 else 0.0), []).append(p)
        main = torch.optim.AdamW(
            [{"params": ps, "rate": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()],
            lr=stage.learning_rate,
        )
        if not alternate:
            return self.accelerator.prepare(main), None
        second = torch.optim.AdamW([{"params": alternate, "rate": 1.0}], lr=stage.learning_rate)
        return self.accelerator.prepare(main), self.accelerator.prepare(second)

    def _alternate(self, optimizer: Any, methods: nn.ModuleDict, streams: Any, batch: Batch) -> None:
        for method in methods.values():
            loss = method.alternate_loss(streams, batch)  # type: ignore[operator]
            if loss is not None:
                self.accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

    def _trained(self, methods: nn.ModuleDict) -> list[nn.Parameter]:
        return [p for p in [*self.student.parameters(), *methods.parameters()] if p.requires_grad]

    def _stills_pixels(self, batch: Batch, size: tuple[int, int]) -> Tensor:
        if batch.still_indices is None or batch.view is None:
            raise ValueError("clips have pixels of one size only; set moving: 0 in this stage")
        return self.stills.pixels(batch.still_indices, batch.view, size).to(self.device)

    def _last_scores(self) -> dict[str, float | None]:
        records = [json.loads(line) for line in (self.output / LOG).read_text(encoding="utf-8").splitlines()]
        scores: dict[str, float | None] = [record["scores"] for record in records if "scores" in record][-1]
        return scores

    # ---- checkpoints

    def _checkpoint(self, stage: int, step: int, methods: Any, main: Any, alternate: Any) -> None:
        if self.accelerator.is_main_process:
            state = {
                "stage": stage,
                "step": step,
                "student": self.average.current(),
                "average": self.average.state_dict(),
                **{
                    name: None if part is None else part.state_dict()
                    for name, part in (("methods", methods), ("main", main), ("alternate", alternate))
                },
            }
            write_checkpoint(self.output, self._fixed_settings(), state)

    def _restore(self) -> dict[str, Any]:
        state = read_checkpoint(
            self.output, self._fixed_settings(), self.device, cut_log=self.accelerator.is_main_process
        )
        if state is None:
            return {"stage": 0, "step": 0}
        self.average.put(state["student"])
        self.average.load_state_dict(state["average"])
        self.progress(f"resumed from {self.output}: stage {state['stage']}, step {state['step']}")
        return state

    def _fixed_settings(self) -> str:
        settings = asdict(self.settings)
        for name in _FIXED:
            del settings[name]
        return json.dumps(settings, sort_keys=True)

    def _log(self, record: dict[str, Any], more: str = "") -> None:
        if self.accelerator.is_main_process:
            self.progress(f"{append_log(self.output, record)} {more}".rstrip())


class _Network(nn.Module):
    """The student's `streams` as a forward pass, which wrappers such as DistributedDataParallel need."""

    def __init__(self, student: Any) -> None:
        super().__init__()
        self.student = student

    def forward(self, pixels: Tensor, pts_seconds: Tensor | None) -> Any:
        return self.student.streams(pixels, pts_seconds)


def _partners(methods: nn.ModuleDict) -> dict[str, Any]:
    return {name: network for m in methods.values() for name, network in m.partners().items()}  # type: ignore[operator]


def _to(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    moved: dict[str, Any] = {
        name: value.to(device) if isinstance(value, Tensor) else value for name, value in vars(batch).items()
    }
    moved["teachers"] = {name: value.to(device) for name, value in batch.teachers.items()}
    return Batch(**moved)


def _check_labels(settings: Distillation, labelled: np.ndarray) -> None:
    for number, stage in enumerate(settings.stages, 1):
        share = stage.labelled_share
        if (share or stage.images == "labelled") and not labelled.any():
            raise ValueError(f"stage {number} takes images with fixations, and the data has none")
        if share is not None and share < 1 and labelled.all():
            raise ValueError(
                f"labelled_share {share:g} of stage {number} takes images without fixations too, there are none"
            )
