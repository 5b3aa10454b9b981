"""Random crops of the training images, as more pictures for teachers to label: make_crops.py [OUTPUT]

Reads $SALCAP_SHARED (default ../shared) and writes OUTPUT/flickr8k and OUTPUT/others (default runs/crops). Images whose
fixations are held out for validation are left alone, and so is Flickr8k's val part. The same crops every time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from salcap.datasets.captioned_images import load_captioned_images
from salcap.datasets.fixations import load_fixations

SIDE = (0.4, 0.8)  # of a crop, as a share of the image's


def main(output: Path) -> None:
    data = Path(os.environ.get("SALCAP_SHARED", "../shared")) / "data"
    rng = np.random.default_rng(0)
    for folder, path, count in sources(data):
        (output / folder).mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            for number in range(count):
                share = rng.uniform(*SIDE) * np.exp(rng.uniform(-0.15, 0.15, 2))
                size = np.minimum(np.round(share * image.size), image.size).astype(int)
                corner = np.floor(rng.random(2) * (image.size - size + 1)).astype(int)
                crop = image.convert("RGB").crop((*corner.tolist(), *(corner + size).tolist()))
                crop.save(output / folder / f"{path.parent.parent.name}-{path.stem}-{number}.jpg", quality=92)


def sources(data: Path) -> Iterator[tuple[str, Path, int]]:
    """Folder to write to, image, number of its crops: more of the pictures that are larger and fewer."""
    for item in load_captioned_images(data / "captions" / "flickr8k", "train"):
        yield "flickr8k", item.path, 2
    for item in load_captioned_images(data / "captions" / "coco_val2017"):
        yield "others", item.path, 6
    for name in ("osie", "sun500"):
        for image in load_fixations(name, data / "saliency" / name, "train"):
            yield "others", image.path, 6


if __name__ == "__main__":
    main(Path(*(sys.argv[1:] or ["runs/crops"])))
