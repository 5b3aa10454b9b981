"""Distil a student from a teacher of one's own on a few images: distil_student.py [FOLDER]

FOLDER gets images (frames of the sample), the teacher's maps and the student. Real training takes thousands of images
and steps; see configs/distill/.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image
from torch import Tensor

import salcap
from salcap.distill.map_cache import build_map_cache
from salcap.distill.settings import DataSettings, Distillation, ImageSource, ModelSpec, StageSettings
from salcap.distill.trainer import Distiller
from salcap.saliency.trainable import load_trained

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample.mp4"


class Teacher(salcap.SaliencyModel):
    """Looks at warm colours; any backbone, torch module or ONNX file can stand here."""

    def forward(self, pixels: Tensor, pts_seconds: Tensor | None = None) -> Tensor:
        return 8 * (pixels[:, 0] - pixels[:, 2])


def main(folder: Path, steps: int = 60) -> None:
    images = folder / "images"
    images.mkdir()
    frames = salcap.read_frames(SAMPLE, num_frames=16)
    for number, pixels in enumerate(frames.pixels):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(images / f"{number:02d}.png")

    build_map_cache(Teacher(), images, folder / "maps", "images")  # the teacher runs once
    data = DataSettings(str(folder / "cache"), (ImageSource(str(images), {"mine": str(folder / "maps")}),))
    stage = StageSettings({"soft": {"teachers": {"mine": 1.0}}}, steps, batch_size=8, warmup_steps=5)
    settings = Distillation(str(folder / "student"), ModelSpec("uva_net"), data, (stage,))
    trained = Distiller(settings, progress=print).run()

    student, teacher = load_trained("uva_net", trained), Teacher()
    for name, model in (("student", student), ("bundled uva_net", salcap.create_saliency("uva_net"))):
        scores = salcap.score_saliency(model.predict(frames), density=teacher.predict(frames).exp())
        print(f"{name}: correlation with the teacher {scores['cc']:.3f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
