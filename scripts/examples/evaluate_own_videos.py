"""Score captions of one's own videos, listed in JSON lines with what people said: evaluate_own_videos.py [FOLDER]

FOLDER gets the list here, two clips of the sample; from the command line the same is
`salcap evaluate --dataset videos --root FOLDER --output receipt.json`.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import salcap

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample.mp4"
REFERENCES = ["a woman in an orange suit is smiling", "an astronaut poses in front of a flag"]


def main(folder: Path) -> None:
    shutil.copy(SAMPLE, folder / "sample.mp4")
    lines = [
        {"video": "sample.mp4", "id": "start", "captions": REFERENCES, "end": 3.0},
        {"video": "sample.mp4", "id": "end", "captions": REFERENCES, "start": 3.0},
    ]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    comparison = salcap.compare(
        "videos",
        folder,
        saliency=("none", "uva_net"),
        policy=("foveate", "random"),
        keep_ratio=(0.5,),
        metrics=("bleu", "rouge_l", "cider"),  # these need no Java
        num_frames=4,
    )
    for row in comparison.rows:
        scores = ", ".join(f"{name} {value:.3f}" for name, value in row.scores.items() if value is not None)
        print(f"{row.arm.name:30} {scores}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
