"""Two-way and three-way transfer among trained networks (Bi-KD)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from salcap.config import build_dataclass
from salcap.distill.data import Batch
from salcap.distill.losses.collaborative import collaborative_loss
from salcap.distill.methods.base import Context, Method
from salcap.distill.networks import create_student
from salcap.distill.settings import ModelSpec
from salcap.saliency.streams import StreamModel, Streams


class Collaborative(Method):
    """The student and its partners teach each other, whoever is best on a sample; see `collaborative_loss`.

    All of them should be trained already. Images must be labelled. The partners are saved beside the student.

    Args:
        partners: name -> settings of a network (`ModelSpec`); one for two-way, two for three-way transfer.
    """

    def __init__(self, context: Context, partners: dict[str, dict[str, Any]], weight: float = 1.0) -> None:
        super().__init__(context, weight)
        if not partners:
            raise ValueError("partners must name at least one network")
        self.networks = nn.ModuleDict(
            {name: create_student(build_dataclass(ModelSpec, spec, name)) for name, spec in partners.items()}
        )

    def forward(self, streams: Streams, batch: Batch, epoch: int) -> Tensor:
        if not bool(batch.labelled.all()):
            raise ValueError("collaborative needs labelled images; set images: labelled in this stage")
        maps = [streams.fused]
        for network in self.partners().values():
            pixels = self.context.stills_pixels(batch, network.input_size)
            maps.append(network.streams(pixels[:, None]).fused)
        return collaborative_loss(maps, batch.density).total

    def partners(self) -> dict[str, StreamModel]:
        return dict(self.networks.items())  # type: ignore[arg-type]
