"""Backbones that are trained here: fresh ones for training, and their trained weights."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

from salcap.saliency.runtimes import FastUvaNet
from salcap.saliency.streams import StreamModel
from salcap.saliency.teachers.effnet_teacher import EffnetTeacher
from salcap.saliency.uva_net import UvaNet

TRAINABLE: dict[str, Callable[..., StreamModel]] = {
    "effnet_teacher": EffnetTeacher,
    "uva_net": UvaNet,
    "uva_net_32": partial(UvaNet, image_size=32),
}
_TO_PREDICT: dict[str, type[StreamModel]] = {
    "effnet_teacher": EffnetTeacher,
    "uva_net": FastUvaNet,
    "uva_net_32": FastUvaNet,
}
_BUNDLED = Path(__file__).parents[1] / "weights"


def load_trained(name: str, checkpoint: str | Path | None = None, runtime: str = "auto") -> StreamModel:
    """A trained backbone, ready to predict.

    Args:
        name: of `TRAINABLE`.
        checkpoint: folder that ``save_pretrained`` wrote, or a Hub id; None for the bundled weights.
        runtime: of the students, see `FastUvaNet.use_runtime`; the teacher runs in torch.

    Raises:
        FileNotFoundError: no weights of that name are bundled, and no checkpoint was named.
        ValueError: an unknown runtime.
        ImportError: a runtime that is not installed.
    """
    if checkpoint is None:
        checkpoint = _BUNDLED / name
        if not (checkpoint / "config.json").is_file():
            raise FileNotFoundError(
                f"no weights of {name} come with salcap; train it (salcap distill) and name its folder as checkpoint"
            )
    with redirect_stdout(io.StringIO()):  # the Hub's class prints where it loads from
        model = _TO_PREDICT[name].from_pretrained(checkpoint)
    file = Path(checkpoint) / "model.safetensors"
    model.weights_path = file if file.is_file() else None
    return model.use_runtime(runtime) if isinstance(model, FastUvaNet) else model


def effnet_teacher(checkpoint: str | Path | None = None) -> StreamModel:
    """The teacher, see `load_trained`."""
    return load_trained("effnet_teacher", checkpoint)


def uva_net(checkpoint: str | Path | None = None, runtime: str = "auto") -> StreamModel:
    """The student, see `load_trained`."""
    return load_trained("uva_net", checkpoint, runtime)


def uva_net_32(checkpoint: str | Path | None = None, runtime: str = "auto") -> StreamModel:
    """The student at 32x32, see `load_trained`; no weights of it are bundled."""
    return load_trained("uva_net_32", checkpoint, runtime)
