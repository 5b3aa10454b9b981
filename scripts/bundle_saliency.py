"""Put a trained saliency backbone into the package, in half precision: bundle_saliency.py NAME FOLDER

NAME is one of salcap.saliency.trainable, FOLDER what `salcap distill` wrote ("output/model"). Prints the largest
difference that half precision makes to a log-density of random frames. The card is written by hand, and the hashes by
`cd salcap/weights && sha256sum */*.json */*.safetensors >SHA256SUMS`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from salcap.saliency.streams import StreamModel
from salcap.saliency.trainable import TRAINABLE, load_trained

WEIGHTS = Path(__file__).resolve().parents[1] / "salcap" / "weights"


def main(name: str, folder: str) -> None:
    if name not in TRAINABLE:
        sys.exit(f"{name!r} is not trained here, allowed: {', '.join(sorted(TRAINABLE))}")
    trained = load_trained(name, folder)
    frames = torch.randint(0, 256, (8, 3, 240, 320), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    before = trained.predict(frames, "native")
    load_plain(name, folder).half().save_pretrained(WEIGHTS / name)
    after = load_trained(name, WEIGHTS / name).predict(frames, "native")
    size = (WEIGHTS / name / "model.safetensors").stat().st_size
    print(
        f"{WEIGHTS / name}: {size:,} bytes, log-densities differ by {float((before - after).abs().max()):.4f} at most"
    )


def load_plain(name: str, folder: str) -> StreamModel:
    """The network as it trains, without a runtime in its place."""
    made = TRAINABLE[name]
    return (made if isinstance(made, type) else made.func).from_pretrained(folder)  # type: ignore[attr-defined]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
