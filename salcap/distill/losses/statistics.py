"""Statistics of feature maps as knowledge: where a teacher is active, and which of its channels are active together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEAST_NORM = 1e-6  # below it features are dead, and their direction is noise


class FeatureStatisticsLoss(nn.Module):
    """Match first- and second-order statistics of the student's features to a teacher's, at several depths.

    First order: ``F1 = mean_c A_c``, a spatial map, on the smaller grid of the two, divided by its norm. Second order:
    the Gram matrix ``G = A A^T / (h w)`` of the features flattened over space, the student's after a trainable 1x1
    projection to the teacher's channels, divided by its Frobenius norm. Of each the squared Euclidean distance; the
    mean over samples and depths. Neither depends on the scale of the features. Zero where both agree; no gradient
    reaches the teacher.

    That first- and second-order statistics are transferred, and not the maps themselves, is the paper's. These
    definitions, the norms and the projection are our interpretation, for the paper's text is not known to us.

    Args:
        student_channels: C_s of each depth.
        teacher_channels: C_t of each depth. Where it equals C_s, the projection starts as the identity.
        first_order: weight of the first-order term; 0 leaves it out.
        second_order: weight of the second-order term; 0 leaves it out.

    Raises:
        ValueError: no depth, lists of different lengths, or weights that are negative or both 0.

    Source: Zhang et al., ACM MM 2019, doi 10.1145/3343031.3351089.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        first_order: float = 1.0,
        second_order: float = 1.0,
    ) -> None:
        super().__init__()
        if not student_channels or len(student_channels) != len(teacher_channels):
            raise ValueError(
                "student_channels and teacher_channels must name the same depths, at least one,"
                f" got {list(student_channels)} and {list(teacher_channels)}"
            )
        if min(first_order, second_order) < 0 or first_order == second_order == 0:
            raise ValueError(f"the weights must be >= 0 and not both 0, got {first_order} and {second_order}")
        self.first_order = first_order
        self.second_order = second_order
        self.channels = tuple(zip(student_channels, teacher_channels, strict=True))
        self.projections = nn.ModuleList(_projection(student, teacher) for student, teacher in self.channels)

    def forward(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
        """Scalar.

        Args:
            student_features: (N, C_s, h, w) of each depth.
            teacher_features: (N, C_t, H, W) of each depth, of the same frames.

        Raises:
            ValueError: another number of depths, or shapes that do not match.
        """
        if not len(student_features) == len(teacher_features) == len(self.channels):
            raise ValueError(
                f"expected features of {len(self.channels)} depths,"
                f" got {len(student_features)} of the student and {len(teacher_features)} of the teacher"
            )
        losses = []
        for depth, (student, teacher) in enumerate(zip(student_features, teacher_features, strict=True)):
            self._check(depth, student, teacher)
            teacher = teacher.detach()
            if self.first_order:
                losses.append(self.first_order * first_order_distance(student, teacher))
            if self.second_order:
                losses.append(self.second_order * second_order_distance(self.projections[depth](student), teacher))
        return torch.stack(losses).sum() / len(self.channels)

    def _check(self, depth: int, student: Tensor, teacher: Tensor) -> None:
        for role, features, channels in zip(
            ("student", "teacher"), (student, teacher), self.channels[depth], strict=True
        ):
            if features.ndim != 4 or features.shape[1] != channels or 0 in features.shape:
                raise ValueError(
                    f"the {role}'s features at depth {depth} must be (N, {channels}, h, w), got {tuple(features.shape)}"
                )
        if len(student) != len(teacher):
            raise ValueError(f"{len(student)} samples of the student, {len(teacher)} of the teacher at depth {depth}")


def first_order_distance(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """``||F1_S / |F1_S| - F1_T / |F1_T| ||^2``, 0..4: (N, C_s, h, w) and (N, C_t, H, W) to the mean over samples."""
    height, width = map(min, student_features.shape[-2:], teacher_features.shape[-2:])
    maps = (
        F.interpolate(features.float().mean(1, keepdim=True), (height, width), mode="area").flatten(1)
        for features in (student_features, teacher_features)
    )
    student, teacher = (F.normalize(one, dim=1, eps=_LEAST_NORM) for one in maps)
    return (student - teacher).square().sum(1).mean()


def second_order_distance(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """``||G_S / |G_S| - G_T / |G_T| ||^2``, 0..2: (N, C, h, w) and (N, C, H, W) to the mean over samples."""
    student, teacher = (
        F.normalize(gram(features).flatten(1), dim=1, eps=_LEAST_NORM)
        for features in (student_features, teacher_features)
    )
    return (student - teacher).square().sum(1).mean()


def gram(features: Tensor) -> Tensor:
    """``A A^T / (h w)``: (N, C, h, w) to (N, C, C) float32, mixed precision or not."""
    with torch.autocast(features.device.type, enabled=False):
        flat = features.float().flatten(2)
        return flat @ flat.mT / flat.shape[-1]


def _projection(student_channels: int, teacher_channels: int) -> nn.Conv2d:
    projection = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)
    if student_channels == teacher_channels:
        nn.init.dirac_(projection.weight)
    else:
        nn.init.orthogonal_(projection.weight)  # keeps as much of the student's Gram matrix as fits
    return projection
