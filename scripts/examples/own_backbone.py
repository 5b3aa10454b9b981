"""A saliency backbone of one's own, which looks at what is bright or red: own_backbone.py [VIDEO]

The same class from the command line, without registering it: `salcap caption --saliency own_backbone.py:Bright`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor, nn

import salcap
from salcap.saliency.adapter import TorchSaliency

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample.mp4"


class Bright(salcap.SaliencyModel):
    """(T, 3, H, W) in 0..1 -> (T, h, w) log-density, of any size; it need not be normalised."""

    def forward(self, pixels: Tensor, pts_seconds: Tensor | None = None) -> Tensor:
        return 4 * pixels.mean(1)


def red() -> salcap.SaliencyModel:
    """Any torch module from images to maps; here one convolution."""
    network = nn.Conv2d(3, 1, 5, padding=2, bias=False)
    for channel, weight in enumerate((0.4, -0.2, -0.2)):
        nn.init.constant_(network.weight[:, channel], weight)
    return TorchSaliency(network, size=(64, 64), mean=0.5, std=0.25, output="logits")


def main(video: Path = SAMPLE) -> None:
    salcap.register_saliency("bright", Bright)
    salcap.register_saliency("red", red)
    frames = salcap.read_frames(video, num_frames=2)
    for name in ("bright", "red"):
        log_density = salcap.create_saliency(name).predict(frames)  # (T, H, W); exp sums to 1 for each frame
        peak = divmod(int(log_density[0].argmax()), log_density.shape[2])
        captioner = salcap.SaliencyCaptioner.from_pretrained("salcap-mini", saliency=name, keep_ratio=0.5)
        print(f"{name}: looks first at (row, column) {peak}: {captioner.caption(video).text}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
