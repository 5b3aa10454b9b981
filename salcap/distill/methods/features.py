"""Methods that teach with the features of a live teacher (`TeacherFeatures`: stills only)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from salcap.distill.data import Batch
from salcap.distill.losses.densities import ground_truth_at_grid, kl_divergence
from salcap.distill.losses.generative import GenerativeDistillation, weight_features
from salcap.distill.losses.statistics import FeatureStatisticsLoss
from salcap.distill.methods.base import Context, Method, teacher_map
from salcap.saliency.density import normalise_log_density
from salcap.saliency.streams import Streams


class Statistics(Method):
    """First- and second-order statistics of feature maps; see `FeatureStatisticsLoss`.

    Args:
        teacher: name of a live teacher.
        depths: of the student's features that are matched to the teacher's, counted from its map backwards.
        first_order, second_order: weights.
    """

    def __init__(
        self,
        context: Context,
        teacher: str,
        depths: int = 2,
        first_order: float = 1.0,
        second_order: float = 1.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(context, weight)
        channels = context.student.feature_channels
        if not 1 <= depths <= len(channels):
            raise ValueError(f"depths must be 1..{len(channels)}, got {depths}")
        self.teacher, self.depths = teacher, depths
        of_teacher = [context.teacher_features.channels(teacher)] * depths
        self.loss = FeatureStatisticsLoss(channels[-depths:], of_teacher, first_order, second_order)

    def forward(self, streams: Streams, batch: Batch, epoch: int) -> Tensor:
        taught = self.context.teacher_features(self.teacher, batch)
        loss: Tensor = self.loss(streams.features[-self.depths :], [taught] * self.depths)
        return loss


class Generative(Method):
    """Generative feature distillation: conditional VAE, attention, alternating stages; see `GenerativeDistillation`.

    The task loss on attention-weighted features is KL(target || map read out from them), the target being people's
    density where known, else a teacher's map. After training the heads are dropped and the student reads its plain
    features out (our interpretation), so combine it with a loss on the plain map.

    Args:
        teacher: name of a live teacher.
        maps: name of the teacher whose maps are the target where nobody's fixations are known.
        hidden: width of the heads and VAEs.
    """

    def __init__(self, context: Context, teacher: str, maps: str, hidden: int = 64, weight: float = 1.0) -> None:
        super().__init__(context, weight)
        self.teacher, self.maps = teacher, maps
        self.distillation = GenerativeDistillation(
            context.student.feature_channels[-1], context.teacher_features.channels(teacher), hidden
        )
        self._alternate = list(self.distillation.generative_parameters())

    def forward(self, streams: Streams, batch: Batch, epoch: int) -> Tensor:
        own, taught = self._features(streams, batch)
        weighted = weight_features(own, self.distillation.student_attention(own))
        prediction = normalise_log_density(self.context.student.read_out(weighted.flatten(0, 1)))
        known = batch.labelled[:, None, None]
        target = teacher_map(batch, self.maps).exp()
        target = target.where(~known, batch.density)
        target = ground_truth_at_grid(target, prediction)
        task = kl_divergence(target.flatten(1), prediction.flatten(1)).mean()
        loss: Tensor = task + self.distillation(own, taught, epoch)
        return loss

    def alternate_parameters(self) -> Iterator[nn.Parameter]:
        return iter(self._alternate)

    def alternate_loss(self, streams: Streams, batch: Batch) -> Tensor:
        loss: Tensor = self.distillation(*self._features(streams, batch))
        return loss

    def _features(self, streams: Streams, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, 1, C, h, w) of the student and of the teacher."""
        return streams.features[-1][:, None], self.context.teacher_features(self.teacher, batch)[:, None]
