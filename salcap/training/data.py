"""What a training run reads: tokenizer, captions, cached features, and the batches drawn from them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from salcap.captioners.mini.modeling import encoder_options
from salcap.datasets.captioned_images import (
    CaptionedImage,
    iter_density_maps,
    list_splits,
    load_captioned_images,
)
from salcap.training.feature_cache import FeatureCache
from salcap.training.mixture import draw_log_density, draw_weighting
from salcap.training.settings import CaptionerTraining
from salcap.training.text import clean_caption, pack_captions, read_sentences, train_tokenizer


class TrainingData:
    """Captions and features of a run; everything is drawn from generators that the caller seeds.

    Attributes:
        captions: for each training image its cleaned captions; ``token_ids`` the same as tokens.
        sentence_ids: sentences for language modelling.
        validation_captions: of the images that are scored after each epoch.
    """

    def __init__(self, settings: CaptionerTraining, accelerator: Accelerator, progress: Callable[[str], None]) -> None:
        self.settings, self.device, self._progress = settings, accelerator.device, progress
        data = settings.data
        with accelerator.main_process_first():  # the others read what the first wrote
            maps = dict(iter_density_maps(data.density_maps)) if data.density_maps else {}
            self._rows: list[tuple[FeatureCache, int]] = []  # of each training image
            self.captions: list[list[str]] = []
            for root in data.images:
                items = load_captioned_images(root, "train" if list_splits(root) else None)
                cache = self._cache(Path(root).name, items, data.num_views, maps)
                self._rows += [(cache, row) for row in range(len(items))]
                self.captions += [_clean(item) for item in items]
            validation = load_captioned_images(data.validation, "val")
            self.validation_cache = self._cache(f"{Path(data.validation).name}-val", validation, 1, maps)
            self.validation_captions = [_clean(item) for item in validation[: settings.validation_images]]
            sentences = [s for path in data.sentences for s in read_sentences(path, data.most_sentences_per_video)]
            self.tokenizer = self._tokenizer(sentences)
        self.token_ids = [self.tokenizer(captions)["input_ids"] for captions in self.captions]
        self.sentence_ids = self.tokenizer(sentences)["input_ids"] if sentences else []

    def visual(self, chosen: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """Encoder arguments of a batch of training images, under a drawn number of frames and a drawn weighting.

        A clip of several frames is made of views of one image at drawn times.
        """
        frames = int(rng.choice((1, 2, 3), p=(0.85, 0.1, 0.05)))
        views = rng.integers(self.settings.data.num_views, size=(len(chosen), frames))
        features, density = self.gather([self._rows[i] for i in chosen], views)
        weighting = draw_weighting(rng, light=frames > 1)
        log_density = None if weighting.mode == "none" else draw_log_density(rng, density)
        seconds = rng.uniform(0.2, 4.0, views.shape).cumsum(axis=1)
        return {
            "trunk_features": features,
            "pts_seconds": torch.from_numpy(seconds).to(self.device).float(),
            "log_density": None if log_density is None else log_density.to(self.device),
            **encoder_options(weighting),
        }

    def validation_visual(self, start: int, stop: int, rng: np.random.Generator) -> dict[str, Any]:
        """Features and maps of validation images, whole and as they are; the maps of `draw_log_density`'s teacher."""
        rows = [(self.validation_cache, row) for row in range(start, min(stop, len(self.validation_captions)))]
        features, density = self.gather(rows, np.zeros((len(rows), 1), int))
        maps = draw_log_density(rng, density, teacher=True).to(self.device)
        return {"trunk_features": features, "log_density": maps}

    def pack(self, rows: Sequence[Sequence[Sequence[int]]]) -> dict[str, Tensor]:
        """See `pack_captions`; on the run's device."""
        t, most = self.tokenizer, self.settings.model.most_tokens
        packed = pack_captions(rows, t.bos_token_id, t.eos_token_id, t.pad_token_id, most)
        return {key: value.to(self.device) for key, value in packed.items()}

    def gather(self, rows: Sequence[tuple[FeatureCache, int]], views: np.ndarray) -> tuple[Tensor, Tensor]:
        """Trunk features (B, F, N, C) on the device and maps (B, F, g, g) on the CPU, float32."""
        pairs = list(zip(rows, views, strict=True))
        features = torch.from_numpy(np.stack([cache.features[row][chosen] for (cache, row), chosen in pairs]))
        density = np.stack([[cache.density(row, int(v)) for v in chosen] for (cache, row), chosen in pairs])
        return features.to(self.device).float(), torch.from_numpy(density)

    def _cache(
        self, name: str, items: list[CaptionedImage], num_views: int, maps: dict[str, np.ndarray]
    ) -> FeatureCache:
        model = self.settings.model
        folder = Path(self.settings.data.cache) / name
        cache = FeatureCache(folder, items, maps, trunk=model.trunk, num_views=num_views, image_size=model.image_size)

        def report(done: int, of: int) -> None:
            if done % 500 < 2 or done == of:
                self._progress(f"cache {name} {done}/{of}")

        cache.build(device=str(self.device), progress=report)
        return cache

    def _tokenizer(self, sentences: list[str]) -> PreTrainedTokenizerFast:
        """The run's tokenizer; the first process trains it, the folder appears whole or not at all."""
        folder = Path(self.settings.output) / "tokenizer"
        if not folder.exists():
            text = [caption for captions in self.captions for caption in captions] + sentences
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            train_tokenizer(text, self.settings.model.vocab_size).save_pretrained(partial)
            os.replace(partial, folder)
        return PreTrainedTokenizerFast.from_pretrained(folder)


def _clean(item: CaptionedImage) -> list[str]:
    return [clean_caption(caption) for caption in item.captions]
