"""Coupled distillation: each branch of the student learns from its own teacher and from the ground truth at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from salcap.distill.losses.densities import (
    at_grid,
    check_maps,
    ground_truth_at_grid,
    kl_divergence,
    relative_density,
)

DISTANCES = ("l2", "kld")


class CoupledLoss(nn.Module):
    """Step 1: ``mu * D(S, T) + (1 - mu) * D(S, G)``, once for the spatial and once for the temporal branch.

    A sample without ground truth has ``D(S, T)`` alone, with weight 1 (our choice). No gradient reaches the teacher.

    The two targets of each branch are the paper's; that they are mixed by one mu, and squared differences as D, are
    our interpretation, for the paper's text and its mu are not known to us.

    Args:
        mu: weight of the teacher, 0..1.
        distance: "l2", the mean squared difference of relative densities (mean 1, so that the scale does not depend on
            the grid), or "kld", KL(target || student) in nats, our alternative.

    Raises:
        ValueError: mu outside 0..1, or an unknown distance.

    Source: UVA-Net, Fu et al., AAAI 2020, arXiv 1904.04449.
    """

    def __init__(self, mu: float = 0.5, distance: str = "l2") -> None:
        super().__init__()
        if not 0.0 <= mu <= 1.0:
            raise ValueError(f"mu must be in 0..1, got {mu}")
        _check_distance(distance)
        self.mu = mu
        self.distance = distance

    def forward(
        self,
        student_log_density: Tensor,
        teacher_log_density: Tensor,
        density: Tensor | None = None,
        labelled: Tensor | None = None,
    ) -> Tensor:
        """The mean over samples.

        Args:
            student_log_density: (N, h, w).
            teacher_log_density: (N, H, W), brought to the student's grid.
            density: (N, H', W') ground truth of any positive sum; whatever stands for unlabelled samples is not read.
            labelled: (N,) bool, which samples have ground truth; None for all if there is a density, else for none.

        Raises:
            ValueError: shapes that do not match, unusable maps, or samples marked as labelled without a density.
        """
        student, known = _student_and_labelled(student_log_density, density, labelled)
        teacher = at_grid("teacher_log_density", teacher_log_density.detach(), student)
        losses = _distances(self.distance, student, teacher)
        if density is not None and bool(known.any()):
            ground = _distances(self.distance, student[known], ground_truth_at_grid(density[known], student[known]))
            losses = losses.masked_scatter(known, self.mu * losses[known] + (1 - self.mu) * ground)
        return losses.mean()


def fused_loss(
    log_density: Tensor,
    density: Tensor | None = None,
    teacher_log_densities: Sequence[Tensor] = (),
    labelled: Tensor | None = None,
    distance: str = "l2",
) -> Tensor:
    """Step 2: ``D(P, G)`` of the fused prediction; samples without ground truth learn from the teachers' mixture.

    That step 2 trains on the ground truth is the paper's; squared differences are our interpretation, the mixture (the
    mean of the teachers' densities, in place of G) our choice for unlabelled data.

    Args:
        log_density: (N, h, w), P.
        density: (N, H, W) ground truth, as in `CoupledLoss`.
        teacher_log_densities: (N, H, W) each, on grids of their own; read only where a sample is unlabelled.
        labelled: (N,) bool, as in `CoupledLoss`.
        distance: as in `CoupledLoss`.

    Returns:
        The mean over samples.

    Raises:
        ValueError: shapes that do not match, unusable maps, an unknown distance, or unlabelled samples without teacher.

    Source: UVA-Net, Fu et al., AAAI 2020, arXiv 1904.04449.
    """
    _check_distance(distance)
    student, known = _student_and_labelled(log_density, density, labelled)
    target = torch.empty_like(student)
    if density is not None and bool(known.any()):
        target[known] = ground_truth_at_grid(density[known], student[known])
    if not bool(known.all()):
        if not teacher_log_densities:
            raise ValueError(f"{int((~known).sum())} of {len(known)} samples have neither ground truth nor a teacher")
        maps = [
            at_grid("a teacher's log-density", teacher.detach(), student)[~known] for teacher in teacher_log_densities
        ]
        target[~known] = torch.stack(maps).exp().mean(0).log()
    return _distances(distance, student, target).mean()


def _student_and_labelled(
    log_density: Tensor, density: Tensor | None, labelled: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The prediction normalised in float32, and (N,) bool."""
    check_maps("the student's log-density", log_density)
    num_maps = len(log_density)
    if density is not None:
        check_maps("density", density, num_maps)
    if labelled is None:
        labelled = torch.full((num_maps,), density is not None, device=log_density.device)
    if labelled.shape != (num_maps,) or labelled.dtype != torch.bool:
        raise ValueError(f"labelled must be ({num_maps},) bool, got {tuple(labelled.shape)} {labelled.dtype}")
    if density is None and bool(labelled.any()):
        raise ValueError(f"{int(labelled.sum())} samples are marked as labelled, but there is no density")
    return at_grid("the student's log-density", log_density, log_density), labelled


def _distances(distance: str, log_density: Tensor, log_target: Tensor) -> Tensor:
    """(N,)"""
    if distance == "kld":
        return kl_divergence(log_target.flatten(1), log_density.flatten(1))
    return (relative_density(log_density) - relative_density(log_target)).square().mean((-2, -1))


def _check_distance(distance: str) -> None:
    if distance not in DISTANCES:
        raise ValueError(f"unknown distance {distance!r}, allowed: {', '.join(DISTANCES)}")
