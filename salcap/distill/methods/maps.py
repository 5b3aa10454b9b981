"""Methods that teach with maps: people's, teachers', or both."""

from __future__ import annotations

from torch import Tensor

from salcap.distill.data import Batch
from salcap.distill.losses.coupled import CoupledLoss, fused_loss
from salcap.distill.losses.densities import correlation, ground_truth_at_grid, kl_divergence
from salcap.distill.methods.base import Context, Method, teacher_map
from salcap.saliency.density import normalise_log_density
from salcap.saliency.streams import Streams


class GroundTruth(Method):
    """No distillation: the divergence from people's density where people's fixations are known.

    Args:
        correlation: weight of 1 - CC beside the KL divergence; see `_divergence`.
    """

    def __init__(self, context: Context, correlation: float = 0.0, weight: float = 1.0) -> None:
        super().__init__(context, weight)
        self.correlation = correlation

    def forward(self, streams: Streams, batch: Batch, epoch: int) -> Tensor:
        known = batch.labelled
        if not bool(known.any()):
            return streams.fused.sum() * 0.0
        return _divergence(batch.density[known], streams.fused[known], self.correlation)


class Coupled(Method):
    """Step 1 of UVA-Net: each stream learns from its teacher and the ground truth; see `CoupledLoss`.

    Args:
        spatial: name of the teacher with maps of frames on their own.
        temporal: name of the teacher with maps of videos; of clips made from stills it is known what moves, and that is
            the target. Without it, and on stills, the spatial stream learns alone.
    """

    def __init__(
        self,
        context: Context,
        spatial: str,
        temporal: str | None = None,
        mu: float = 0.5,
        distance: str = "l2",
        weight: float = 1.0,
    ) -> None:
        super().__init__(context, weight)
        self.spatial, self.temporal = spatial, temporal
        self.loss = CoupledLoss(mu, distance)

    def forward(self, streams: Streams, batch: Batch, epoch: int) -> Tensor:
        loss = self.loss(streams.spatial, teacher_map(batch, self.spatial), batch.density, batch.labelled)
        if streams.temporal is None or self.temporal is None:
            return loss
        target = teacher_map(batch, self.temporal) if batch.motion is None else batch.motion.clamp_min(1e-9).log()
        return loss + self.loss(streams.temporal, target, batch.density, batch.labelled)


class Fused(Method):
    """Step 2 of UVA-Net: the fused map learns from the ground truth, else from teachers; see `fused_loss`.

    Args:
        teachers: names of teachers with maps.
    """

    def __init__(self, context: Context, teachers: list[str], distance: str = "l2", weight: float = 1.0) -> None:
        super().__init__(context, weight)
        self.teachers, self.distance = teachers, distance

    def forward(self, streams: Streams, batch: Batch, epoch: int) -> Tensor:
        maps = [teacher_map(batch, name) for name in self.teachers]
        return fused_loss(streams.fused, batch.density, maps, batch.labelled, self.distance)


class Soft(Method):
    """Plain distillation of maps: the divergence from the teachers' mixture, labelled or not.

    Args:
        teachers: name -> share of the mixture.
        correlation: weight of 1 - CC beside the KL divergence; see `_divergence`.
    """

    def __init__(
        self, context: Context, teachers: dict[str, float], correlation: float = 0.0, weight: float = 1.0
    ) -> None:
        super().__init__(context, weight)
        self.correlation = correlation
        if not teachers or min(teachers.values()) <= 0:
            raise ValueError(f"teachers must name shares above 0, got {teachers}")
        total = sum(teachers.values())
        self.teachers = {name: share / total for name, share in teachers.items()}

    def forward(self, streams: Streams, batch: Batch, epoch: int) -> Tensor:
        mixture = sum(share * teacher_map(batch, name).exp() for name, share in self.teachers.items())
        assert isinstance(mixture, Tensor)
        return _divergence(mixture, streams.fused, self.correlation)


def _divergence(density: Tensor, logits: Tensor, weight: float) -> Tensor:
    """KL(target || prediction) + weight * (1 - CC), the mean over maps; zero where both agree.

    KL alone is content with maps that are too flat where a network is unsure, which CC and NSS punish; many saliency
    networks train on such sums (UNISAL, Droste et al., ECCV 2020, among them).
    """
    prediction = normalise_log_density(logits)
    target = ground_truth_at_grid(density, prediction)
    loss = kl_divergence(target.flatten(1), prediction.flatten(1))
    if weight:
        loss = loss + weight * (1 - correlation(prediction, target))
    return loss.mean()
