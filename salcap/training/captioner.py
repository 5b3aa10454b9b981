"""Training of the bundled captioner: language model, captions, then self-critical CIDEr, on cached trunk features."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from salcap.captioners.mini.modeling import encoder_options
from salcap.config import Weighting
from salcap.optimisation import (
    Means,
    WeightAverage,
    append_log,
    cosine_schedule,
    draw_batch,
    read_checkpoint,
    write_checkpoint,
)
from salcap.training.cider_reward import CiderReward
from salcap.training.data import TrainingData
from salcap.training.model import CaptionTask, build_captioner
from salcap.training.settings import CaptionerTraining, StageSettings

log = logging.getLogger(__name__)


class CaptionerTrainer:
    """Runs the stages of a `CaptionerTraining`; a run started again goes on from its last checkpoint."""

    def __init__(self, settings: CaptionerTraining, progress: Callable[[str], None] = log.info) -> None:
        self.settings, self.progress = settings, progress
        self.output = Path(settings.output)
        self.output.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(
            mixed_precision=settings.mixed_precision,
            # a drawn mode may leave the saliency or time embedding unused
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.device = self.accelerator.device
        torch.manual_seed(settings.seed)
        self.data = self.load_data()
        self.tokenizer = self.data.tokenizer
        self.model: Any = self.start_model()
        self.task: nn.Module = self.accelerator.prepare(CaptionTask(self.model))
        self.average = WeightAverage(self.model, settings.ema_decay)

    def load_data(self) -> TrainingData:
        """Images, captions, maps and text as the settings name them."""
        return TrainingData(self.settings, self.accelerator, self.progress)

    def start_model(self) -> Any:
        """The captioner before its first step."""
        return build_captioner(self.settings.model, self.tokenizer, self.settings.saliency)

    def run(self) -> Path:
        """Train, and return the folder of the finished captioner (``output/model``)."""
        done = self._restore()
        for index, stage in enumerate(self.settings.stages):
            if index >= done["stage"]:
                self._run_stage(index, stage, done if index == done["stage"] else None)
        return self.save(self.output / "model")

    def save(self, folder: Path) -> Path:
        """Write the averaged weights as float16 safetensors, with tokenizer and image processor."""
        if self.accelerator.is_main_process:
            with self.average.applied():
                half = copy.deepcopy(self.model).half()
            half.save_pretrained(folder)
            self.model.config.save_pretrained(folder)  # says float32: the half precision is for storage only
            self.tokenizer.save_pretrained(folder)
            side = self.settings.model.image_size
            ViTImageProcessorPil(
                size={"height": side, "width": side}, resample=Image.Resampling.BICUBIC, do_normalize=False
            ).save_pretrained(folder)
        self.accelerator.wait_for_everyone()
        return folder

    # ---- stages

    def _run_stage(self, index: int, stage: StageSettings, resumed: dict[str, Any] | None) -> None:
        items = len(self.data.sentence_ids if stage.kind == "language" else self.data.captions)
        if items == 0:
            raise ValueError("stage 'language' needs data.sentences")
        steps_per_epoch = math.ceil(items / stage.batch_size)
        total = steps_per_epoch * stage.epochs
        trained = self._choose_trained(stage)
        optimizer = torch.optim.AdamW(trained, lr=stage.learning_rate, betas=(0.9, 0.98))
        optimizer = self.accelerator.prepare(optimizer)
        first = 0
        if resumed is not None and resumed["step"]:
            first = resumed["step"]
            optimizer.load_state_dict(resumed["optimizer"])
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        step_of = {"language": self._language_loss, "caption": self._caption_loss, "reward": self._reward_loss}
        self.progress(f"stage {stage.kind}: {items} items, steps {first} to {total}")
        window, whole = Means(), Means()  # since the last line of progress, and over the epoch
        for step in range(first, total):
            chosen, rng = draw_batch((self.settings.seed, index), items, stage.batch_size, step, rank, world)
            torch.manual_seed(int(rng.integers(2**31)))
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * stage.learning_rate * cosine_schedule(step, total, stage.warmup_steps)
            loss, shown = step_of[stage.kind](stage, chosen, rng)
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            self.average.update()
            window.add(shown)
            whole.add(shown)
            ended = (step + 1) % steps_per_epoch == 0
            if ended or (step + 1) % 50 == 0:
                left = (total - step - 1) / window.rate() / 60
                rate = f"{window.rate():.2f} steps/s, {left:.0f} min left"
                self.progress(f"{stage.kind} {step + 1}/{total} {window.means()} {rate}")
                window = Means()
            if ended:
                self._log(
                    stage=stage.kind, epoch=(step + 1) // steps_per_epoch, **whole.means(), **self.validate(stage)
                )
                whole = Means()
            if ended or (step + 1) % self.settings.checkpoint_steps == 0:
                self._checkpoint(index, step + 1, optimizer)
        self._checkpoint(index + 1, 0, None)

    def _choose_trained(self, stage: StageSettings) -> list[dict[str, Any]]:
        """Parameter groups of a stage: the trunk's tail at a rate of its own, no weight decay on vectors."""
        tail = self.model.encoder.trunk.tail
        tail.requires_grad_(stage.trunk_rate > 0)
        in_tail = {id(p) for p in tail.parameters()}
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                rate = stage.trunk_rate if id(parameter) in in_tail else 1.0
                decay = self.settings.weight_decay if parameter.dim() > 1 and rate == 1.0 else 0.0
                groups.setdefault((rate, decay), []).append(parameter)
        return [{"params": ps, "rate": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()]

    def _language_loss(self, stage: StageSettings, chosen: np.ndarray, rng: Any) -> tuple[Tensor, dict[str, float]]:
        # short rows of eight sentences: packing them shares nothing here but saves padding
        self.task.train()
        ids = [self.data.sentence_ids[i] for i in chosen]
        text = self.data.pack([ids[i : i + 8] for i in range(0, len(ids), 8)])
        logits = self.task(text, None)
        loss = _cross_entropy(logits, text["labels"], stage.label_smoothing)
        return loss, {"loss": loss.item()}

    def _caption_loss(self, stage: StageSettings, chosen: np.ndarray, rng: Any) -> tuple[Tensor, dict[str, float]]:
        self.task.train()
        token_ids = [self.data.token_ids[i] for i in chosen]
        text = self.data.pack([[ids[k] for k in rng.permutation(len(ids))[: stage.captions]] for ids in token_ids])
        logits = self.task(text, self.data.visual(chosen, rng))
        loss = _cross_entropy(logits, text["labels"], stage.label_smoothing)
        return loss, {"loss": loss.item()}

    def _reward_loss(self, stage: StageSettings, chosen: np.ndarray, rng: Any) -> tuple[Tensor, dict[str, float]]:
        """REINFORCE on CIDEr-D; a sample's baseline is the mean of the image's others (Luo, arXiv 2003.09971)."""
        self.task.eval()
        visual = self.data.visual(chosen, rng)
        with torch.no_grad():
            tokens = self.model.encoder(**visual).last_hidden_state
            sampled = self.model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=tokens),
                do_sample=True,
                top_k=0,
                num_beams=1,
                num_return_sequences=stage.captions,
                max_new_tokens=18,  # longer than nearly all captions: what runs on is noise
            )
        texts = self.tokenizer.batch_decode(sampled, skip_special_tokens=True)
        scored = [self.reward(int(chosen[i // stage.captions]), text.strip()) for i, text in enumerate(texts)]
        rewards = torch.tensor(scored)
        rewards = rewards.view(len(chosen), stage.captions).to(self.device)
        baseline = (rewards.sum(1, keepdim=True) - rewards) / (stage.captions - 1)
        special = {self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, self.tokenizer.bos_token_id}
        kept = [[int(t) for t in row if int(t) not in special] for row in sampled]
        text = self.data.pack([kept[i : i + stage.captions] for i in range(0, len(kept), stage.captions)])
        log_probability = self.task(text, visual).float().log_softmax(-1)
        log_probability = log_probability.gather(-1, text["labels"].clamp_min(0)[..., None])[..., 0]
        owner = text["caption_index"]
        advantage = (rewards - baseline).gather(1, owner.clamp_min(0)) * (owner >= 0)
        loss = -(advantage * log_probability).sum() / (owner >= 0).sum()
        return loss, {"reward": rewards.mean().item()}

    @cached_property
    def reward(self) -> CiderReward:
        return CiderReward(self.data.captions)

    # ---- validation, averaging, checkpoints

    @torch.inference_mode()
    def validate(self, stage: StageSettings) -> dict[str, float]:
        """Greedy CIDEr-D of the averaged weights on validation images: whole, and at a quarter of the patches."""
        if stage.kind == "language":
            return {}
        self.task.eval()
        score, scores = CiderReward(self.data.validation_captions), {}
        arms = {"all": Weighting(), **{p: Weighting("prune", p, 0.25) for p in ("foveate", "random", "pool")}}
        with self.average.applied():
            for arm, weighting in arms.items():
                texts: list[str] = []
                for start in range(0, len(self.data.validation_captions), 50):
                    visual = self.data.validation_visual(start, start + 50, np.random.default_rng(0))
                    if weighting.mode == "none":
                        del visual["log_density"]
                    outputs = self.model.encoder(**visual, **encoder_options(weighting))
                    ids = self.model.generate(encoder_outputs=outputs, do_sample=False, num_beams=1)
                    texts += self.tokenizer.batch_decode(ids, skip_special_tokens=True)
                values = [score(i, text.strip()) for i, text in enumerate(texts)]
                scores[f"cider_d_{arm}"] = round(float(np.mean(values)), 4)
        return scores

    def _checkpoint(self, stage: int, step: int, optimizer: Any) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "stage": stage,
            "step": step,
            "model": self.average.current(),
            "ema": self.average.state_dict(),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
        }
        write_checkpoint(self.output, self._fixed_settings(), state)

    def _restore(self) -> dict[str, Any]:
        state = read_checkpoint(
            self.output, self._fixed_settings(), self.device, cut_log=self.accelerator.is_main_process
        )
        if state is None:
            return {"stage": 0, "step": 0}
        self.average.put(state["model"])
        self.average.load_state_dict(state["ema"])
        self.progress(f"resumed from {self.output}: stage {state['stage']}, step {state['step']}")
        return state

    def _fixed_settings(self) -> str:
        """Settings that a run cannot change on its way, as text; where things lie may change."""
        settings = asdict(self.settings)
        for name in ("output", "data", "saliency", "checkpoint_steps"):
            del settings[name]
        return json.dumps(settings, sort_keys=True)

    def _log(self, **record: Any) -> None:
        if self.accelerator.is_main_process:
            self.progress(append_log(self.output, record))


def _cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), label_smoothing=label_smoothing)
