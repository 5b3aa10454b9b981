"""One captioner led by several maps, with a quarter of the patches each: compare_maps.py [VIDEO]

On whole data sets, with intervals and a report: `salcap compare`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import salcap

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample.mp4"
MAPS = ("center", "spectral_residual", "uva_net")


def main(video: Path = SAMPLE) -> None:
    captioners = {"none": salcap.SaliencyCaptioner.from_pretrained("salcap-mini", mode="none")}
    for name in MAPS:
        captioners[name] = salcap.SaliencyCaptioner.from_pretrained(
            "salcap-mini", saliency=name, policy="top", keep_ratio=0.25
        )
    for name, captioner in captioners.items():
        caption = captioner.caption(video, num_frames=4)
        print(f"{name:18}{caption.visual_tokens:4} tokens  {caption.score:.3f}  {caption.text}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
