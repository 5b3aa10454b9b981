"""glimpse: a network of 0.15 MB for phones."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from salcap.saliency.adapter import ImageNetworkSaliency
from salcap.saliency.teachers.litert import LiteRtNetwork
from salcap.saliency.weights import Download, find_weights

_SIZE = (176, 176)
_DOWNLOAD = Download(
    "https://raw.githubusercontent.com/the-super-toys/glimpse-android/"
    "58aa91ddb262cb6c33179f434dd1a9f864b56b96/glimpse-core/src/main/assets/model.tflite",
    147_824,
    "cf31f18d01e487077747fb34e72b6d78260ab18d08a49e78ce98fa63912fae8a",
)


class Glimpse(ImageNetworkSaliency):
    """Extra ``litert``; maps of 22x22. The density is exp(output / temperature), as in the authors' application.

    Reference:
        github.com/the-super-toys/glimpse-android (Apache-2.0).

    Args:
        path: ``model.tflite`` or its folder; see `find_weights`.
        temperature: 0.25 scores best on OSIE; the authors use 0.2.

    Raises:
        ImportError: no ai-edge-litert.
        ValueError: another file, or a temperature of 0 or less.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, temperature: float = 0.25) -> None:
        super().__init__(_SIZE, frames_per_pass=1)
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature
        self.weights_path = find_weights(("glimpse/model.tflite", "model.tflite"), path, download=_DOWNLOAD)
        self._network = LiteRtNetwork(self.weights_path, "input.1", (1, 3, *_SIZE), "Sigmoid", (1, 1, 22, 22))

    def run(self, images: Tensor) -> Tensor:
        array = images.detach().float().cpu().contiguous().numpy()
        return (torch.from_numpy(self._network(array)) / self.temperature).to(images)
