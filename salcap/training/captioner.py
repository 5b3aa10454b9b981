"""Training of the bundled captioner: language model, captions, then self-critical CIDEr, on cached trunk features."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from salcap.config import Weighting
from salcap.datasets.captioned_images import iter_density_maps, load_captioned_images
from salcap.training.cider_reward import CiderReward
from salcap.training.feature_cache import FeatureCache
from salcap.training.mixture import draw_log_density, draw_weighting
from salcap.training.model import CaptionTask, WeightAverage, build_captioner
from salcap.training.settings import CaptionerTraining, StageSettings
from salcap.training.text import clean_caption, pack_captions, read_sentences, train_tokenizer

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
        self._load_data()
        self.model: Any = build_captioner(settings.model, self.tokenizer)
        self.model.encoder.trunk.requires_grad_(False)
        self.model.encoder.trunk.head.requires_grad_(True)
        self.task: nn.Module = self.accelerator.prepare(CaptionTask(self.model))
        self.average = WeightAverage(self.model, settings.ema_decay)

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

    # ---- data

    def _load_data(self) -> None:
        data, model = self.settings.data, self.settings.model
        maps = dict(iter_density_maps(data.density_maps)) if data.density_maps else {}
        self.caches: list[FeatureCache] = []
        self.captions: list[list[str]] = []
        self.where: list[tuple[int, int]] = []  # training image -> (cache, row)
        for root in data.images:
            splits = {json.loads(line).get("split") for line in (Path(root) / "captions.jsonl").open(encoding="utf-8")}
            items = load_captioned_images(root, "train" if "train" in splits else None)
            self.caches.append(self._cache(root, items, data.num_views, maps))
            self.where += [(len(self.caches) - 1, row) for row in range(len(items))]
            self.captions += [[clean_caption(caption) for caption in item.captions] for item in items]
        validation = load_captioned_images(data.validation, "val")[: self.settings.validation_images]
        self.validation_cache = self._cache(
            f"{data.validation}-val", load_captioned_images(data.validation, "val"), 1, maps
        )
        self.validation_reward = CiderReward([[clean_caption(c) for c in item.captions] for item in validation])
        self.num_validation = len(validation)
        self.sentences = [s for path in data.sentences for s in read_sentences(path, data.most_sentences_per_video)]
        stored = self.output / "tokenizer"
        if stored.exists():
            self.tokenizer = PreTrainedTokenizerFast.from_pretrained(stored)
        else:
            text = [caption for captions in self.captions for caption in captions] + self.sentences
            self.tokenizer = train_tokenizer(text, model.vocab_size)
            self.tokenizer.save_pretrained(stored)
        self.token_ids = [self.tokenizer(captions)["input_ids"] for captions in self.captions]
        self.sentence_ids = self.tokenizer(self.sentences)["input_ids"] if self.sentences else []

    def _cache(self, root: str, items: list[Any], num_views: int, maps: dict[str, np.ndarray]) -> FeatureCache:
        model = self.settings.model
        folder = Path(self.settings.data.cache) / Path(root).name
        cache = FeatureCache(folder, items, trunk=model.trunk, num_views=num_views, image_size=model.image_size)
        with self.accelerator.main_process_first():
            cache.build(
                maps,
                device=str(self.device),
                progress=lambda done, of: self.progress(f"cache {folder.name} {done}/{of}") if done % 500 < 2 else None,
            )
        return cache

    def _visual(
        self, rows: list[tuple[FeatureCache, int]], views: np.ndarray, rng: np.random.Generator
    ) -> dict[str, Any]:
        """Encoder arguments of a batch whose clips are ``views`` (B, F) of their images, with a drawn weighting."""
        gathered = []
        for name in ("local", "deep", "density"):
            arrays = [getattr(cache, name)[row][frames] for (cache, row), frames in zip(rows, views, strict=True)]
            gathered.append(torch.from_numpy(np.stack(arrays)).to(self.device).float())
        local, deep, density = gathered
        frames = views.shape[1]
        weighting = draw_weighting(rng, light=frames > 1)
        log_density = None if weighting.mode == "none" else draw_log_density(rng, density.cpu()).to(self.device)
        gaps = rng.uniform(0.2, 4.0, (len(rows), frames)).cumsum(axis=1)
        return {
            "trunk_features": (local, deep),
            "pts_seconds": torch.from_numpy(gaps).to(self.device).float(),
            "log_density": log_density,
            **asdict(weighting),
        }

    def _batch(self, stage: StageSettings, chosen: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        frames = int(rng.choice((1, 2, 3), p=(0.85, 0.1, 0.05)))
        rows = [(self.caches[self.where[i][0]], self.where[i][1]) for i in chosen]
        views = rng.integers(self.settings.data.num_views, size=(len(rows), frames))
        return self._visual(rows, views, rng)

    def _pack(self, rows: list[list[list[int]]]) -> dict[str, Tensor]:
        t = self.tokenizer
        packed = pack_captions(rows, t.bos_token_id, t.eos_token_id, t.pad_token_id, self.settings.model.most_tokens)
        return {key: value.to(self.device) for key, value in packed.items()}

    # ---- stages

    def _run_stage(self, index: int, stage: StageSettings, resumed: dict[str, Any] | None) -> None:
        items = len(self.sentence_ids) if stage.kind == "language" else len(self.where)
        if items == 0:
            raise ValueError("stage 'language' needs data.sentences")
        steps_per_epoch = math.ceil(items / stage.batch_size)
        total = steps_per_epoch * stage.epochs
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in trained if p.dim() > 1], "weight_decay": self.settings.weight_decay},
                {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
            ],
            lr=stage.learning_rate,
            betas=(0.9, 0.98),
        )
        optimizer = self.accelerator.prepare(optimizer)
        first = 0
        if resumed is not None and resumed["step"]:
            first = resumed["step"]
            optimizer.load_state_dict(resumed["optimizer"])
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        step_of = {"language": self._language_loss, "caption": self._caption_loss, "reward": self._reward_loss}
        self.progress(f"stage {stage.kind}: {items} items, steps {first} to {total}")
        sums: dict[str, float] = {}
        started, since = time.monotonic(), first
        for step in range(first, total):
            epoch, at = divmod(step, steps_per_epoch)
            order = np.random.default_rng((self.settings.seed, index, epoch)).permutation(items)
            chosen = order[at * stage.batch_size : (at + 1) * stage.batch_size][rank::world]
            # randomness hangs on the step alone, so a resumed run takes the same path
            rng = np.random.default_rng((self.settings.seed, index, epoch, at, rank))
            torch.manual_seed(int(rng.integers(2**31)))
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * _schedule(step, total, stage.warmup_steps)
            if len(chosen):
                loss, shown = step_of[stage.kind](stage, chosen, rng)
                self.accelerator.backward(loss)
                self.accelerator.clip_grad_norm_(trained, self.settings.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
                self.average.update()
                for key, value in shown.items():
                    sums[key] = sums.get(key, 0.0) + value
            ended = at == steps_per_epoch - 1
            if ended or (step + 1) % 50 == 0:
                rate = (step + 1 - since) / (time.monotonic() - started)
                left = (total - step - 1) / rate / 60
                means = {key: round(value / (step + 1 - since), 4) for key, value in sums.items()}
                self.progress(f"{stage.kind} {step + 1}/{total} {means} {rate:.2f} steps/s, {left:.0f} min left")
                if ended:
                    self._log(stage=stage.kind, epoch=epoch + 1, **means, **self._validate(stage))
                sums, started, since = {}, time.monotonic(), step + 1
            if ended or (step + 1) % self.settings.checkpoint_steps == 0:
                self._checkpoint(index, step + 1, optimizer)
        self._checkpoint(index + 1, 0, None)

    def _language_loss(self, stage: StageSettings, chosen: np.ndarray, rng: Any) -> tuple[Tensor, dict[str, float]]:
        # short rows of eight sentences: packing them shares nothing here but saves padding
        ids = [self.sentence_ids[i] for i in chosen]
        text = self._pack([ids[i : i + 8] for i in range(0, len(ids), 8)])
        logits, _ = self.task(text, None)
        loss = _cross_entropy(logits, text["labels"], stage.label_smoothing)
        return loss, {"loss": loss.item()}

    def _caption_loss(self, stage: StageSettings, chosen: np.ndarray, rng: Any) -> tuple[Tensor, dict[str, float]]:
        self.task.train()
        drawn = [rng.permutation(len(self.token_ids[i]))[: stage.captions] for i in chosen]
        text = self._pack([[self.token_ids[i][k] for k in ks] for i, ks in zip(chosen, drawn, strict=True)])
        logits, _ = self.task(text, self._batch(stage, chosen, rng))
        loss = _cross_entropy(logits, text["labels"], stage.label_smoothing)
        return loss, {"loss": loss.item()}

    def _reward_loss(self, stage: StageSettings, chosen: np.ndarray, rng: Any) -> tuple[Tensor, dict[str, float]]:
        """REINFORCE on CIDEr-D; a sample's baseline is the mean of the image's others (Luo, arXiv 2003.09971)."""
        self.task.eval()
        visual = self._batch(stage, chosen, rng)
        with torch.no_grad():
            tokens = self.model.encoder(**visual).last_hidden_state
            sampled = self.model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=tokens),
                do_sample=True,
                top_k=0,
                num_beams=1,
                num_return_sequences=stage.captions,
            )
        texts = self.tokenizer.batch_decode(sampled, skip_special_tokens=True)
        rewards = torch.tensor([self.reward(int(chosen[i // stage.captions]), t.strip()) for i, t in enumerate(texts)])
        rewards = rewards.view(len(chosen), stage.captions).to(self.device)
        baseline = (rewards.sum(1, keepdim=True) - rewards) / (stage.captions - 1)
        special = {self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, self.tokenizer.bos_token_id}
        kept = [[int(t) for t in row if int(t) not in special] for row in sampled]
        text = self._pack([kept[i : i + stage.captions] for i in range(0, len(kept), stage.captions)])
        logits, _ = self.task(text, visual)
        taken = text["labels"].clamp_min(0)[..., None]
        log_probability = logits.float().log_softmax(-1).gather(-1, taken)[..., 0]
        owner = text["caption_index"]
        advantage = (rewards - baseline).gather(1, owner.clamp_min(0)) * (owner >= 0)
        loss = -(advantage * log_probability).sum() / (owner >= 0).sum()
        return loss, {"reward": rewards.mean().item()}

    @property
    def reward(self) -> CiderReward:
        if not hasattr(self, "_reward"):
            self._reward = CiderReward(self.captions)
        return self._reward

    # ---- validation, averaging, checkpoints

    @torch.inference_mode()
    def _validate(self, stage: StageSettings) -> dict[str, float]:
        """Greedy CIDEr-D of the averaged weights on validation images: whole, and at a quarter of the patches."""
        if stage.kind == "language":
            return {}
        self.task.eval()
        scores: dict[str, float] = {}
        arms = {"all": Weighting(), **{p: Weighting("prune", p, 0.25) for p in ("foveate", "random", "pool")}}
        with self.average.applied():
            for arm, weighting in arms.items():
                texts: list[str] = []
                for start in range(0, self.num_validation, 50):
                    rows = slice(start, min(start + 50, self.num_validation))
                    local, deep, density = (
                        torch.from_numpy(np.array(getattr(self.validation_cache, name)[rows])).to(self.device).float()
                        for name in ("local", "deep", "density")
                    )
                    log_density = None if weighting.mode == "none" else density.clamp_min(1e-7).log()
                    outputs = self.model.encoder(
                        trunk_features=(local, deep), log_density=log_density, **asdict(weighting)
                    )
                    ids = self.model.generate(encoder_outputs=outputs, do_sample=False, num_beams=1)
                    texts += self.tokenizer.batch_decode(ids, skip_special_tokens=True)
                values = [self.validation_reward(i, text.strip()) for i, text in enumerate(texts)]
                scores[f"cider_d_{arm}"] = round(float(np.mean(values)), 4)
                log.debug("%s: %s", arm, texts[:5])
        return scores

    def _checkpoint(self, stage: int, step: int, optimizer: Any) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "stage": stage,
            "step": step,
            "model": self.average.current(),
            "ema": self.average.values,
            "optimizer": None if optimizer is None else optimizer.state_dict(),
        }
        partial = self.output / "checkpoint.partial"
        torch.save(state, partial)
        os.replace(partial, self.output / "checkpoint.pt")

    def _restore(self) -> dict[str, Any]:
        path = self.output / "checkpoint.pt"
        if not path.exists():
            return {"stage": 0, "step": 0}
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        self.average.put(state["model"])
        self.average.values = state["ema"]
        self.progress(f"resumed from {path}: stage {state['stage']}, step {state['step']}")
        return state

    def _log(self, **record: Any) -> None:
        if self.accelerator.is_main_process:
            with (self.output / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            self.progress(json.dumps(record))


def _cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), label_smoothing=label_smoothing)


def _schedule(step: int, total: int, warmup: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))
