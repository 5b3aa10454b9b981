"""What a method of distillation is, and what it may build on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from salcap.distill.data import Batch
from salcap.distill.networks import TeacherFeatures
from salcap.saliency import SaliencyModel
from salcap.saliency.streams import StreamModel, Streams


@dataclass(frozen=True, eq=False)
class Context:
    """What methods may build on.

    Attributes:
        student: the network in training.
        teachers: name -> live, frozen teacher.
        teacher_features: of a batch's stills.
        stills_pixels: gives a batch's stills for a network of another input size.
    """

    student: StreamModel
    teachers: Mapping[str, SaliencyModel]
    teacher_features: TeacherFeatures
    stills_pixels: Callable[[Batch, tuple[int, int]], Tensor]


class Method(nn.Module):
    """One way of teaching. Its parameters, if any, are trained beside the student's.

    Args:
        weight: of its loss in the stage's sum.
    """

    def __init__(self, context: Context, weight: float = 1.0) -> None:
        super().__init__()
        self.weight, self.context = weight, context

    def forward(self, streams: Streams, batch: Batch, epoch: int) -> Tensor:
        """The loss of one batch, without weight. ``epoch`` counts from 1."""
        raise NotImplementedError

    def partners(self) -> dict[str, StreamModel]:
        """Networks that learn beside the student and are saved with it."""
        return {}

    def alternate_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that `alternate_loss` trains, with an optimiser of their own."""
        return iter(())

    def alternate_loss(self, streams: Streams, batch: Batch) -> Tensor | None:
        """A second loss for `alternate_parameters`, of the same batch; None where there is none."""
        return None


def teacher_map(batch: Batch, name: str) -> Tensor:
    """(B * F, h, w) log-density of a teacher.

    Raises:
        ValueError: the data has no maps of that teacher.
    """
    if name not in batch.teachers:
        raise ValueError(f"the data has no maps of teacher {name!r}, only of {sorted(batch.teachers)}")
    return batch.teachers[name]
