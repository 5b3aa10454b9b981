"""attention_center: Google's gaze network, the strongest published teacher here."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from salcap.saliency.adapter import ImageNetworkSaliency
from salcap.saliency.teachers.litert import LiteRtNetwork
from salcap.saliency.weights import Download, find_weights

_SIZE = (480, 640)
_DOWNLOAD = Download(
    "https://raw.githubusercontent.com/google/attention-center/"
    "919b5d99d1037dcb682f8632b6b519b88b95bc94/model/center.tflite",
    2_111_740,
    "8968fe8266a305c356334a1dcd5c58541b58be916decd32c55c6f51fe65273de",
)


class AttentionCenter(ImageNetworkSaliency):
    """A MobileNetV3-like network trained by its authors on SALICON; extra ``litert``; maps of 480x640.

    The file's own output is one point; the density is the sigmoid of its inner tensor ``Sum``. Frames are fed as
    0..255, the range of the maps in our data; group normalisation after the first convolution makes 0..1 do the same.

    Reference:
        github.com/google/attention-center (Apache-2.0).

    Args:
        path: ``center.tflite`` or its folder; see `find_weights`.
        temperature: the log-density is divided by it; 1.5 scores a little better on OSIE than the network's own 1.

    Raises:
        ImportError: no ai-edge-litert.
        ValueError: another file, or a temperature of 0 or less.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, temperature: float = 1.0) -> None:
        super().__init__(_SIZE, max_value=255.0, interpolation="bicubic", frames_per_pass=1)
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature
        self.weights_path = find_weights(("attention_center/center.tflite", "center.tflite"), path, download=_DOWNLOAD)
        self._network = LiteRtNetwork(self.weights_path, "image:0", (1, *_SIZE, 3), "Sum", (1, *_SIZE))

    def run(self, images: Tensor) -> Tensor:
        array = np.ascontiguousarray(images.detach().float().cpu().permute(0, 2, 3, 1).numpy())
        return (F.logsigmoid(torch.from_numpy(self._network(array))) / self.temperature).to(images)
