"""Fine-tuning of any captioner with saliency in the loop: teacher forcing along the code path that captions."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import gather_object
from torch import Tensor, nn

from salcap.captioners import load_captioner
from salcap.captioners.likelihood import GivenCaptions
from salcap.config import Weighting
from salcap.evaluation.captions import score_report
from salcap.frames import Frames
from salcap.optimisation import (
    Means,
    append_log,
    cosine_schedule,
    draw_batch,
    learnt_values,
    put_values,
    read_checkpoint,
    write_checkpoint,
)
from salcap.saliency import create_saliency
from salcap.saliency_captioner import SaliencyCaptioner
from salcap.training.clips import CaptionedClips
from salcap.training.finetune_settings import FineTuning
from salcap.training.lora import add_lora, merge_lora
from salcap.training.see_little import SeeLittleTeacher, choose_few
from salcap.training.text import clean_caption

log = logging.getLogger(__name__)

_GAIN_RATE = 1e-2  # learning rate of the gain's logarithm: one number, which has further to go than any weight
_LOG_STEPS = 50
_FREE = ("output", "checkpoint_steps", "num_readers")  # settings that may change when a run goes on


class FineTuner:
    """Runs a `FineTuning`; started again, it goes on from its last checkpoint, as if it had never stopped.

    Args:
        progress: takes a line of text.

    Raises:
        OSError, ValueError, ImportError: a captioner, data, backbone or setting that cannot be.
    """

    def __init__(self, settings: FineTuning, progress: Callable[[str], None] = log.info) -> None:
        self.settings, self.progress = settings, progress
        self.output = Path(settings.output)
        self.output.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(
            mixed_precision=settings.mixed_precision,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # poolers and the like
        )
        self.captioner = _load_captioner(settings)
        few = settings.see_little
        teacher = None
        if few is not None and (few.prediction or few.representation):
            teacher = SeeLittleTeacher(self.captioner, few)
            teacher.to(self.accelerator.device)
        _freeze(self.captioner.model, settings.frozen)
        torch.manual_seed(settings.seed)  # of the adapters' first values
        self._adapters = (
            None if settings.lora is None else add_lora(self.captioner.model, settings.lora, settings.frozen)
        )
        self._task = _Task(self.captioner, settings, teacher)
        self._learnt = learnt_values(self._task)
        optimizer = torch.optim.AdamW(self._groups(), lr=settings.learning_rate, betas=(0.9, 0.98))
        self._network, self._optimizer = self.accelerator.prepare(self._task, optimizer)
        backbone = create_saliency(settings.saliency or self.captioner.default_saliency).to(self.accelerator.device)
        self.pipeline = SaliencyCaptioner(self.captioner, backbone, settings.weighting)
        readers = ThreadPoolExecutor(settings.num_readers)
        self.clips = CaptionedClips(settings.train, self.pipeline, settings.num_frames, readers)
        self.validation = None
        if settings.validation is not None:
            self.validation = CaptionedClips(settings.validation, self.pipeline, settings.num_frames, readers)
            self._cider({str(index): item.captions[0] for index, item in enumerate(self.validation.items)})
        self.steps_per_epoch = math.ceil(len(self.clips.items) / settings.batch_size)

    def run(self) -> Path:
        """Train, and return the folder of the finished captioner (``output/model``)."""
        settings, folder = self.settings, self.output / "model"
        state = self._restore()
        best, stale, total = state["best"], state["stale"], settings.epochs * self.steps_per_epoch
        steps = range(state["step"], total)
        self.progress(f"fine-tuning: {len(self.clips.items)} clips, steps {state['step']} to {total}")
        window = Means()
        for step, (frames, maps) in zip(
            steps, self.clips.read(self._draw(step)[0].tolist() for step in steps), strict=True
        ):
            if stale == settings.patience:
                break
            window.add({"loss": self._step(step, total, frames, maps)})
            done = step + 1
            epoch, ended = math.ceil(done / self.steps_per_epoch), done % self.steps_per_epoch == 0
            if ended or done % _LOG_STEPS == 0:
                rate = round(window.rate(), 3)
                record = {"step": done, "epoch": epoch, **window.means(), "steps_per_second": rate}
                if ended and self.validation is not None:
                    record["cider"] = self.validate()
                    best, stale = (record["cider"], 0) if record["cider"] > best else (best, stale + 1)
                    if stale == 0:
                        self.save(folder)
                self._log(record | self._task.shown(), f"{(total - done) / rate / 60:.0f} min left")
                window = Means()
            if ended or done % settings.checkpoint_steps == 0:
                self._checkpoint({"step": done, "best": best, "stale": stale})
        if self.validation is None:
            self.save(folder)
        return folder

    @torch.no_grad()
    def validate(self) -> float:
        """CIDEr of greedy captions of the validation clips."""
        assert self.validation is not None
        self.captioner.model.eval()
        self._task.set_gain()
        rank, world, size = self.accelerator.process_index, self.accelerator.num_processes, self.settings.batch_size
        items = range(rank, len(self.validation.items), world)
        batches = [items[start : start + size] for start in range(0, len(items), size)]
        limits = {"num_beams": 1, "do_sample": False, "max_new_tokens": self.settings.max_caption_tokens}
        said: list[tuple[int, str]] = []
        with self.accelerator.autocast():
            for indices, (frames, maps) in zip(batches, self.validation.read(batches), strict=True):
                if self.settings.see_little is not None:
                    frames, maps = choose_few(frames, maps, self.settings.see_little)
                texts = self.captioner.generate(frames, maps, self.pipeline.weighting, **limits)
                said += [(index, text.text) for index, text in zip(indices, texts, strict=True)]
        return round(self._cider({str(index): text for index, text in gather_object(said)}), 6)

    def _cider(self, candidates: dict[str, str]) -> float:
        """Of captions of validation clips, by their places; without Java, so that runs stop at one epoch everywhere."""
        assert self.validation is not None
        references = {key: self.validation.items[int(key)].captions for key in candidates}
        report = score_report(references, candidates, ("cider",), tokenizer="python")
        if (cider := report.scores["cider"]) is None:
            raise ValueError(f"validation: {report.reasons['cider']}")
        return cider

    def save(self, folder: Path) -> None:
        """Write the captioner, adapters merged, with what brings its backbone, weighting and gain back as defaults."""
        self._task.set_gain()
        self.captioner.tune(self.pipeline.saliency.name, self.pipeline.weighting, self.captioner.gain)
        if self.accelerator.is_main_process:
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            model = self.captioner.model if self._adapters is None else merge_lora(self._adapters)
            model.save_pretrained(partial)
            self.captioner.save_processor(partial)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        self.accelerator.wait_for_everyone()

    # ---- steps

    def _groups(self) -> list[dict[str, Any]]:
        """Parameter groups: matrices, vectors without weight decay, and the gain at a rate of its own."""
        settings, gain = self.settings, self._task.log_gain
        trained = [p for p in self._task.parameters() if p.requires_grad and p is not gain]
        matrices, vectors = [p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1]
        groups = [(matrices, settings.learning_rate, settings.weight_decay), (vectors, settings.learning_rate, 0.0)]
        if gain is not None:
            groups.append(([gain], _GAIN_RATE, 0.0))
        return [{"params": ps, "rate": rate, "weight_decay": decay} for ps, rate, decay in groups if ps]

    def _draw(self, step: int) -> tuple[np.ndarray, np.random.Generator]:
        settings, processes = self.settings, self.accelerator
        size = len(self.clips.items), settings.batch_size, step
        return draw_batch((settings.seed,), *size, processes.process_index, processes.num_processes)

    def _step(self, step: int, total: int, frames: list[Frames], maps: list[Tensor] | None) -> float:
        """One step of the optimizer; returns the mean loss of a token."""
        settings, weighting = self.settings, self.pipeline.weighting
        chosen, rng = self._draw(step)
        torch.manual_seed(int(rng.integers(2**31)))
        if settings.keep_ratios:
            weighting = replace(weighting, keep_ratio=float(rng.choice(settings.keep_ratios)))
        captions = [str(rng.choice(self.clips.items[index].captions)) for index in chosen]
        if settings.clean_captions:
            captions = [clean_caption(caption) for caption in captions]
        ids = [self.captioner.caption_ids(caption, settings.max_caption_tokens) for caption in captions]
        parts = np.array_split(np.arange(len(chosen)), min(settings.accumulation_steps, len(chosen)))
        num_tokens, loss_sum = sum(map(len, ids)), 0.0
        self.captioner.model.train()
        for part in parts:
            last = part is parts[-1]
            with nullcontext() if last else self.accelerator.no_sync(self._network):
                maps_of_part = None if maps is None else [maps[i] for i in part]
                loss = self._network([frames[i] for i in part], maps_of_part, weighting, [ids[i] for i in part])
                self.accelerator.backward(loss / num_tokens)
            loss_sum += loss.item()
        for group in self._optimizer.param_groups:
            group["lr"] = group["rate"] * cosine_schedule(step, total, settings.warmup_steps)
        self.accelerator.clip_grad_norm_(self._network.parameters(), settings.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss_sum / num_tokens

    # ---- checkpoints and log

    def _checkpoint(self, state: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            weights = {name: value.detach() for name, value in self._learnt.items()}
            state |= {"learnt": weights, "optimizer": self._optimizer.state_dict()}
            write_checkpoint(self.output, self._fixed_settings(), state)

    def _restore(self) -> dict[str, Any]:
        accelerator = self.accelerator
        state = read_checkpoint(
            self.output, self._fixed_settings(), accelerator.device, cut_log=accelerator.is_main_process
        )
        if state is None:
            return {"step": 0, "best": -math.inf, "stale": 0}
        put_values(self._learnt, state["learnt"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.progress(f"resumed from {self.output}: step {state['step']}")
        return state

    def _fixed_settings(self) -> str:
        """Settings that a run cannot change on its way, with its clips, as text; where things lie may change."""
        settings = {name: value for name, value in asdict(self.settings).items() if name not in _FREE}
        for name, clips in (("train", self.clips), ("validation", self.validation)):
            if clips is not None:
                del settings[name]["root"]
                settings[name] |= {"items": len(clips.items), "sha256": clips.sha256}
        return json.dumps(settings, sort_keys=True)

    def _log(self, record: dict[str, Any], more: str) -> None:
        if self.accelerator.is_main_process:
            self.progress(f"{append_log(self.output, record)} {more}")


def _load_captioner(settings: FineTuning) -> Any:
    captioner: Any = load_captioner(settings.captioner, revision=settings.revision)
    if not hasattr(captioner, "give"):
        raise ValueError(f"{settings.captioner} cannot be fine-tuned: {type(captioner).__name__} has no method give")
    if settings.prompt is not None:
        if captioner.default_prompt is None:
            raise ValueError(f"{settings.captioner} takes no text, got prompt {settings.prompt!r}")
        captioner.default_prompt = settings.prompt
    if settings.num_frames is not None:
        captioner.make_room(settings.num_frames * (2 if "zoom" in settings.weighting.modes else 1))
    return captioner


def _freeze(model: nn.Module, beginnings: Sequence[str]) -> None:
    """Parameters whose names begin so are not trained; a beginning of no name is an error."""
    for beginning in beginnings:
        found = [parameter for name, parameter in model.named_parameters() if name.startswith(beginning)]
        if not found:
            names = sorted({".".join(name.split(".")[:2]) for name, _ in model.named_parameters()})
            raise ValueError(f"frozen: no parameter's name begins with {beginning!r}; they begin with {names}")
        for parameter in found:
            parameter.requires_grad_(False)


class _Task(nn.Module):
    """The trained module: a captioner's loss as a forward pass, which DistributedDataParallel needs.

    Attributes:
        log_gain: logarithm of the captioner's gain, which thus stays above 0; None where it is not learned.
    """

    def __init__(self, captioner: Any, settings: FineTuning, teacher: SeeLittleTeacher | None) -> None:
        super().__init__()
        self.model, self._captioner, self._teacher = captioner.model, captioner, teacher
        self._see_little = settings.see_little
        self.log_gain = nn.Parameter(torch.tensor(math.log(captioner.gain))) if settings.learned_gain else None

    def forward(
        self,
        frames: Sequence[Frames],
        maps: Sequence[Tensor] | None,
        weighting: Weighting,
        captions: Sequence[Sequence[int]],
    ) -> Tensor:
        """The loss, summed over tokens."""
        if self.log_gain is not None:
            self._captioner.gain = self.log_gain.exp()
        if self._see_little is None:
            return _loss_of(self._captioner.give(frames, maps, weighting, captions))
        few, few_maps = choose_few(frames, maps, self._see_little)
        given = self._captioner.give(few, few_maps, weighting, captions)
        if self._teacher is None:
            return _loss_of(given)
        return _loss_of(given) + self._teacher.loss(given, self._teacher.give(frames, maps, weighting, captions))

    def set_gain(self) -> None:
        """Make the captioner's gain a number."""
        if self.log_gain is not None:
            self._captioner.gain = self.log_gain.exp().item()

    def shown(self) -> dict[str, float]:
        """The gain, for the log."""
        return {} if self.log_gain is None else {"gain": round(self.log_gain.exp().item(), 4)}


def _loss_of(given: Sequence[GivenCaptions]) -> Tensor:
    return torch.stack([part.loss() for part in given]).sum()
