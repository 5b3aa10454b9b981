"""Collaborative transfer among pretrained models: of each sample, whoever does best on the label teaches the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from salcap.distill.losses.densities import at_grid, check_maps, correlation, ground_truth_at_grid, kl_divergence


@dataclass(frozen=True, eq=False)
class CollaborativeLoss:
    """One step's loss, and who taught whom.

    Attributes:
        total: scalar to call ``backward`` on: the mean over samples.
        label_losses: (k, N) loss of each model on the label, detached.
        teacher_index: (N,) int64 the model that taught; -1 where nobody did.
    """

    total: Tensor
    label_losses: Tensor
    teacher_index: Tensor


def collaborative_loss(
    log_densities: Sequence[Tensor], density: Tensor, detach_teacher: bool = False
) -> CollaborativeLoss:
    """``mean(sum_i l_i + sum_{j != b} KL(P_b || P_j))`` with ``l(P, G) = KL(G || P) - CC(P, G)`` and b the best by l.

    For two models that is ``mean(l_T + l_S + m_T * KL(T || S) + m_S * KL(S || T))`` with ``m_T = 1[l_T < l_S]`` and
    ``m_S = 1 - m_T``, so that on a tie the student, the first, teaches. With three or more only a unique best teaches:
    on a tie nobody does. No temperature and no weights; all models are updated from the same backward pass. The lowest
    value is -k, where all equal the ground truth.

    Args:
        log_densities: (N, h, w) of each of the k models, the student first; all are brought to its grid.
        density: (N, H, W) ground truth of any positive sum.
        detach_teacher: keep the transfer term from changing the momentary teacher; the authors do not detach it.

    Raises:
        ValueError: fewer than two models, shapes that do not match, or unusable maps.

    Source: Bi-KD, Jain, Karthik and Gandhi, TMLR 2025, arXiv 2510.22208.
    """
    if len(log_densities) < 2:
        raise ValueError(f"collaboration needs at least 2 models, got {len(log_densities)}")
    check_maps("the first model's log-density", log_densities[0])
    num_models, num_maps = len(log_densities), len(log_densities[0])
    maps = torch.stack(
        [at_grid(f"log-density {i}", log_density, log_densities[0]) for i, log_density in enumerate(log_densities)]
    )
    truth = ground_truth_at_grid(density, log_densities[0])
    label_losses = torch.stack(
        [kl_divergence(truth.flatten(1), one.flatten(1)) - correlation(one, truth) for one in maps]
    )
    teacher_index = _best(label_losses.detach())
    teachers = maps[teacher_index.clamp_min(0), torch.arange(num_maps, device=maps.device)]
    if detach_teacher:
        teachers = teachers.detach()
    models = torch.arange(num_models, device=maps.device)[:, None]
    learns = (teacher_index >= 0) & (teacher_index != models)
    transfer = kl_divergence(teachers.flatten(1), maps.flatten(2)) * learns
    return CollaborativeLoss((label_losses + transfer).sum(0).mean(), label_losses.detach(), teacher_index)


def _best(label_losses: Tensor) -> Tensor:
    """(k, N) to (N,): the model with the lowest loss, -1 on a tie of more than two models."""
    lowest, best = label_losses.min(0)
    if len(label_losses) == 2:
        return (label_losses[1] < label_losses[0]).long()  # m_S = 1 - m_T
    tie = (label_losses == lowest).sum(0) > 1
    return best.masked_fill(tie, -1)
