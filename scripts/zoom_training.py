"""Is a closer crop worth its tokens once the captioner has learned to read it?

The bundled captioner goes on learning (cross-entropy, then CIDEr) on Flickr8k's training photographs, in two kinds that
read as many tokens: `pair`, two views of 112 pixels, the whole and a crop of it, cut in turn where the student looks,
in the centre, and in a place that means nothing; and `single`, one view of 160 pixels.

    python scripts/zoom_training.py pair ../shared/data/captions/flickr8k runs/zoom     # leaves runs/zoom/pair/model
    python scripts/zoom_training.py single ../shared/data/captions/flickr8k runs/zoom   # leaves runs/zoom/single/model

Killed, each goes on. ``scripts/zoom_table.py --models runs/zoom --trained`` captions the val images by them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from salcap.captioners import load_captioner
from salcap.config import load_config
from salcap.datasets.captioned_images import CaptionedImage, load_captioned_images
from salcap.saliency import create_saliency
from salcap.stills import read_still
from salcap.training.captioner import CaptionerTrainer
from salcap.training.data import TrainingData
from salcap.training.feature_cache import FeatureCache, View
from salcap.training.settings import CaptionerTraining, StageSettings
from salcap.weighting.zoom import zoom_boxes

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"pair": 112, "single": 160}  # pixels
CROPS = ("uva_net", "center", "random")
WHOLE = (0.0, 0.0, 1.0, 1.0)


def find_boxes(items: list[CaptionedImage], path: Path, zoom: float) -> np.ndarray:
    """(images, crops, 4) boxes in fractions of the image, one for each of `CROPS`; kept at ``path``."""
    if not path.exists():
        backbones = [create_saliency(name) for name in CROPS]
        boxes = []
        for done, item in enumerate(items):
            frames = read_still(item.path)
            cut = partial(zoom_boxes, pts_seconds=torch.zeros(1), frame_size=frames.pixels.shape[-2:], zoom=zoom)
            boxes.append(torch.cat([cut(backbone.predict(frames)) for backbone in backbones]).numpy())
            if done % 500 == 0:
                print(f"boxes {done}/{len(items)}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.stack(boxes))
    return np.load(path)


class ViewCache(FeatureCache):
    """Features of the whole image and its crops: even views as they are, odd ones mirrored."""

    boxes: dict[str, np.ndarray]

    def view(self, image_id: str, index: int) -> View:
        crop = index // 2
        box = WHOLE if crop == 0 else tuple(map(float, self.boxes[image_id][crop - 1]))
        return View(box, flip=index % 2 == 1)  # type: ignore[arg-type]


class ViewData(TrainingData):
    """Batches of one view, or of two, as the mode "zoom" shows them."""

    def __init__(self, trainer: ViewTrainer) -> None:
        settings, self.zoomed = trainer.settings, trainer.zoom is not None
        items = load_captioned_images(settings.data.validation, "train")
        self.boxes: dict[str, np.ndarray] = {}
        if trainer.zoom is not None:
            found = find_boxes(items, Path(settings.data.cache) / f"boxes-{trainer.zoom:g}.npy", trainer.zoom)
            self.boxes = {item.image_id: boxes for item, boxes in zip(items, found, strict=True)}
        super().__init__(settings, trainer.accelerator, trainer.progress)

    def visual(self, chosen: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        flip = rng.integers(2, size=(len(chosen), 1))
        views = flip
        if self.zoomed:
            views = np.concatenate([flip, 2 * rng.integers(1, 1 + len(CROPS), size=flip.shape) + flip], 1)
        features, _ = self.gather([self._rows[i] for i in chosen], views)
        return {"trunk_features": features, "pts_seconds": torch.zeros(views.shape)}

    def _cache(self, name: str, items: Any, num_views: int, maps: Any) -> FeatureCache:
        settings = self.settings
        if name.endswith("-val"):
            items = []  # the table scores them
        cache = ViewCache(
            Path(settings.data.cache) / name,
            items,
            maps,
            trunk=settings.model.trunk,
            num_views=2 * (1 + len(CROPS)) if self.zoomed else 2,
            image_size=settings.model.image_size,
        )
        cache.boxes = self.boxes
        cache.build(progress=lambda done, of: print(f"cache {done}/{of}", flush=True) if done % 500 == 0 else None)
        return cache

    def _tokenizer(self, sentences: list[str]) -> Any:
        return load_captioner("salcap-mini").tokenizer


class ViewTrainer(CaptionerTrainer):
    """Goes on from the bundled captioner, brought to the size of the views."""

    def __init__(self, settings: CaptionerTraining, zoom: float | None) -> None:
        self.zoom = zoom
        super().__init__(settings, partial(print, flush=True))

    def load_data(self) -> TrainingData:
        return ViewData(self)

    def start_model(self) -> Any:
        model = load_captioner("salcap-mini").model
        model.encoder.resize(self.settings.model.image_size)
        model.encoder.trunk.requires_grad_(False)
        model.encoder.trunk.head.requires_grad_(True)
        return model

    def validate(self, stage: StageSettings) -> dict[str, float]:
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=tuple(SIZES))
    parser.add_argument("root")
    parser.add_argument("output", type=Path)
    parser.add_argument("--zoom", type=float, default=2.0)
    parser.add_argument("--epochs", default="2,1", help="of cross-entropy and of CIDEr")
    options = parser.parse_args()
    base = load_config(ROOT / "configs" / "salcap-mini.yaml", CaptionerTraining)
    likelihood, reward = (int(n) for n in options.epochs.split(","))
    common = {"batch_size": 40, "warmup_steps": 20}
    folder = options.output / options.kind
    settings = replace(
        base,
        output=str(folder),
        data=replace(
            base.data,
            images=(options.root,),
            validation=options.root,
            density_maps=None,
            sentences=(),
            cache=str(options.output / f"cache-{options.kind}"),
        ),
        model=replace(base.model, image_size=SIZES[options.kind]),
        stages=(
            StageSettings("caption", likelihood, learning_rate=2e-4, label_smoothing=0.1, captions=3, **common),
            StageSettings("reward", reward, learning_rate=5e-5, captions=5, **common),
        ),
        ema_decay=0.99,
    )
    print(ViewTrainer(settings, options.zoom if options.kind == "pair" else None).run())


if __name__ == "__main__":
    main()
