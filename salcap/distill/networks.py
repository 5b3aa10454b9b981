"""The networks of a distillation: fresh or trained ones by their settings, and teachers' features of the stills."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from salcap.distill.data import Batch, Stills, describe_file, prepare_array
from salcap.distill.settings import ModelSpec
from salcap.hashing import weights_sha256
from salcap.saliency import SaliencyModel, create_saliency
from salcap.saliency.streams import StreamModel
from salcap.saliency.trainable import TRAINABLE

_LARGEST_GRID = 20  # cells along a side of stored features


def create_student(spec: ModelSpec) -> StreamModel:
    """A network in training: fresh but for its pretrained parts, or going on from a checkpoint.

    Raises:
        ValueError: not one of `TRAINABLE`, options it does not take, or a checkpoint that is none.
    """
    if spec.name not in TRAINABLE:
        raise ValueError(f"{spec.name!r} is not trained here, allowed: {', '.join(sorted(TRAINABLE))}")
    try:
        model = TRAINABLE[spec.name](**spec.options)
    except TypeError as error:
        raise ValueError(f"{spec.name} does not take {spec.options}: {error}") from error
    if spec.checkpoint is None:
        model.load_pretrained_parts()
    elif not (Path(spec.checkpoint) / "config.json").is_file():
        raise ValueError(f"checkpoint {spec.checkpoint} of {spec.name} is no folder of a saved backbone")
    else:
        model = type(model).from_pretrained(spec.checkpoint)
    return model


def create_teacher(spec: ModelSpec) -> SaliencyModel:
    """A network that teaches, frozen."""
    options = dict(spec.options)
    if spec.checkpoint is not None:
        options["checkpoint"] = spec.checkpoint
    return create_saliency(spec.name, **options).requires_grad_(False)


class TeacherFeatures:
    """Features of the stills from live teachers, made once and kept as float16 in the cache."""

    def __init__(
        self,
        teachers: Mapping[str, tuple[ModelSpec, SaliencyModel]],
        stills: Stills,
        cache: Path,
        progress: Callable[[str], None],
    ) -> None:
        self._teachers, self._stills, self._cache, self._progress = teachers, stills, cache, progress
        self._stored: dict[str, np.ndarray] = {}

    def __call__(self, name: str, batch: Batch) -> Tensor:
        """(B, C, h, w) features of a batch of stills, seen through its view.

        Raises:
            ValueError: a teacher that the settings do not name, or a batch of clips.
        """
        if batch.still_indices is None or batch.view is None:
            raise ValueError("teachers' features are known for stills only; set moving: 0 in this stage")
        stored = torch.from_numpy(self.of(name)[batch.still_indices]).float()
        return batch.view.of(stored).to(batch.pixels.device)

    def channels(self, name: str) -> int:
        """C, the channels of a teacher's features."""
        return int(self.of(name).shape[1])

    def of(self, name: str) -> np.ndarray:
        """(N, C, h, w) float16 of all stills, a memory map."""
        if name not in self._teachers:
            raise ValueError(f"no live teacher {name!r}, teachers has {sorted(self._teachers)}")
        if name not in self._stored:
            spec, model = self._teachers[name]
            paths = self._stills.paths
            first = self._extract(spec, model, paths[0])
            self._stored[name] = prepare_array(
                self._cache / f"features-{name.replace('/', '_')}",
                [str(weights_sha256(model)), str(spec.feature_layer), *map(describe_file, paths)],
                first.shape,
                lambda row: self._extract(spec, model, paths[row]),
                self._progress,
                count=len(paths),
                dtype="float16",
            )
        return self._stored[name]

    @torch.no_grad()
    def _extract(self, spec: ModelSpec, model: SaliencyModel, path: Path) -> np.ndarray:
        """(C, h, w) of one image; images of all shapes give one grid, that of the teacher's input size."""
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
        found: list[Tensor] = []
        if spec.feature_layer is not None:
            handle = _layer(model, spec.feature_layer).register_forward_hook(lambda _, __, out: found.append(out))
            model.predict(pixels, "native")
            handle.remove()
        elif isinstance(model, StreamModel):
            resized = nn.functional.interpolate(
                pixels.float() / 255, model.input_size, mode="bilinear", align_corners=False, antialias=True
            )
            found.append(model.streams(resized[None].to(model.device)).features[-1])
        else:
            raise ValueError(f"teacher {model.name} needs a feature_layer: the name of one of its sub-modules")
        if len(found) != 1 or found[0].ndim != 4 or len(found[0]) != 1:
            raise ValueError(
                f"feature_layer {spec.feature_layer!r} of {model.name} must give (1, C, h, w) once a frame"
            )
        height, width = (min(side, _LARGEST_GRID) for side in found[0].shape[-2:])
        shrunk = nn.functional.adaptive_avg_pool2d(found[0], (height, width))
        return shrunk[0].cpu().numpy().astype(np.float16)


def _layer(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        names = [known for known, _ in model.named_modules() if known]
        raise ValueError(f"no sub-module {name!r}, there are {', '.join(names)}") from error
