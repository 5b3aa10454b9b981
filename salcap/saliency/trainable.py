"""Backbones that are trained here: fresh ones for training, and their trained weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from salcap.saliency.streams import StreamModel
from salcap.saliency.teachers.effnet_teacher import EffnetTeacher
from salcap.saliency.uva_net import UvaNet

TRAINABLE: dict[str, Callable[..., StreamModel]] = {
    "effnet_teacher": EffnetTeacher,
    "uva_net": UvaNet,
    "uva_net_32": partial(UvaNet, image_size=32),
}
_CLASSES: dict[str, type[StreamModel]] = {"effnet_teacher": EffnetTeacher, "uva_net": UvaNet, "uva_net_32": UvaNet}
_BUNDLED = Path(__file__).parents[1] / "weights"


def load_trained(name: str, checkpoint: str | Path | None = None) -> StreamModel:
    """A trained backbone, ready to predict.

    Args:
        name: of `TRAINABLE`.
        checkpoint: folder that ``save_pretrained`` wrote, or a Hub id; None for the bundled weights.

    Raises:
        FileNotFoundError: no weights of that name are bundled, and no checkpoint was named.
    """
    if checkpoint is None:
        checkpoint = _BUNDLED / name
        if not (checkpoint / "config.json").is_file():
            raise FileNotFoundError(
                f"no weights of {name} come with salcap; train it (salcap distill) and name its folder as checkpoint"
            )
    model = _CLASSES[name].from_pretrained(checkpoint)
    return model.fold().eval() if isinstance(model, UvaNet) else model


def _loader(name: str) -> Callable[..., StreamModel]:
    def load(checkpoint: str | Path | None = None) -> StreamModel:
        return load_trained(name, checkpoint)

    return load


effnet_teacher, uva_net, uva_net_32 = map(_loader, ("effnet_teacher", "uva_net", "uva_net_32"))
