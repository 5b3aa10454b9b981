"""The two AUC metrics, which measure whether a map is higher where people looked than elsewhere.

They use neither jitter nor fixed threshold steps: pixels of equal saliency pass a threshold together, so a constant map
scores exactly 0.5.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from salcap.saliency.density import normalise_log_density
from salcap.saliency.ground_truth import check_ground_truth
from salcap.seeding import noise


def auc_judd(log_density: Tensor, fixation_map: Tensor) -> Tensor:
    """Compute the area under the ROC curve of the fixations against all pixels that nobody fixated.

    As published, the thresholds are the values at the fixations, and straight lines join the points of the curve. This
    overestimates the area by at most 1 / (2 * fixations). Every fixation counts, even if several fall on one pixel.

    Args:
        log_density: (..., H, W) prediction; only the order of its values matters.
        fixation_map: (..., H, W) ground truth: the number of fixations on each pixel, see `count_fixations`.

    Returns:
        (...) float64, 0 to 1, higher is better; NaN for a frame without fixations, or with fixations on every pixel.

    Source: Judd, Ehinger, Durand & Torralba, "Learning to predict where humans look", ICCV 2009. Equal to pysaliency's
    ``AUC_Judd(jitter=False)``. AUC_Judd.m of the MIT benchmark breaks ties by noise and counts each pixel once.
    """
    return _per_frame(_judd, log_density, check_ground_truth("fixation_map", fixation_map, log_density))


def s_auc(
    log_density: Tensor,
    fixation_map: Tensor,
    other_fixation_map: Tensor,
    *,
    num_negatives: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Compute the shuffled AUC: the fixations of a frame against fixations on other images.

    A prediction of the centre bias alone gains nothing. By default every fixation on the other images is a negative,
    which gives the limit of the mean over random draws, without their noise.

    Args:
        log_density: (..., H, W) prediction; only the order of its values matters.
        fixation_map: (..., H, W) ground truth: the number of fixations on each pixel, see `count_fixations`.
        other_fixation_map: the same for other images, (..., H, W), or (H, W) for all frames.
        num_negatives: draw this many of the other fixations, with replacement, instead of taking each one once.
        seed: seed of that draw, which is the same on every machine and in every batch.

    Returns:
        (...) float64, 0 to 1, higher is better; NaN for a frame without fixations, or without other fixations.

    Source: Zhang, Tong, Marks, Shan & Cottrell, "SUN: A Bayesian framework for saliency using natural statistics",
    Journal of Vision 2008. Equal to pysaliency's ``sAUC``. AUC_shuffled.m of the MIT benchmark draws as many
    negatives as there are fixations, repeats this 100 times, and uses thresholds 0.1 apart.

    Raises:
        ValueError: ``num_negatives`` is below 1.
    """
    if num_negatives is not None and num_negatives < 1:
        raise ValueError(f"num_negatives must be at least 1, got {num_negatives}")
    others = check_ground_truth("other_fixation_map", other_fixation_map, log_density, one_for_all=True)

    def area(values: Tensor, fixations: Tensor, others: Tensor) -> Tensor:
        if num_negatives is not None:
            others = _draw(others, num_negatives, seed)
        return _mann_whitney(values, fixations, others)

    return _per_frame(area, log_density, check_ground_truth("fixation_map", fixation_map, log_density), others)


def _per_frame(area: Callable[..., Tensor], log_density: Tensor, *counts: Tensor) -> Tensor:
    """Compute ``area`` from the flattened values and counts of each frame."""
    normalise_log_density(log_density)  # raises for an unusable map
    flat = [maps.reshape(-1, maps.shape[-2] * maps.shape[-1]) for maps in (log_density, *counts)]
    return torch.stack([area(*frame) for frame in zip(*flat, strict=True)]).reshape(log_density.shape[:-2])


def _judd(values: Tensor, fixations: Tensor) -> Tensor:
    fixated = fixations > 0
    if not bool(fixated.any()) or bool(fixated.all()):
        return fixations.new_tensor(torch.nan)
    thresholds, hits = _hits(values, fixations)
    free = values[~fixated]
    true_positives = hits.flip(0).cumsum(0) / hits.sum()
    false_positives = 1 - _share_below(thresholds, free, torch.ones_like(free, dtype=torch.float64)).flip(0)
    zero, one = hits.new_zeros(1), hits.new_ones(1)
    return torch.trapezoid(torch.cat([zero, true_positives, one]), torch.cat([zero, false_positives, one]))


def _mann_whitney(values: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Compute the exact area: the chance that a positive is above a negative, where ties count half."""
    if not bool(positives.any()) or not bool(negatives.any()):
        return positives.new_tensor(torch.nan)
    thresholds, hits = _hits(values, positives)
    there = negatives > 0
    below, up_to = (_share_below(thresholds, values[there], negatives[there], equal=equal) for equal in (False, True))
    return (hits * (below + up_to)).sum() / (2 * hits.sum())


def _hits(values: Tensor, fixations: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct values at fixations, ascending, and the number of fixations with each value."""
    fixated = fixations > 0
    thresholds, place = values[fixated].unique(return_inverse=True)
    return thresholds, torch.bincount(place, fixations[fixated])


def _share_below(thresholds: Tensor, values: Tensor, weights: Tensor, *, equal: bool = False) -> Tensor:
    """Return the weighted share of values below each ascending threshold; with ``equal``, below or equal to it."""
    places = torch.bucketize(values, thresholds, right=not equal)
    return torch.bincount(places, weights, len(thresholds) + 1).cumsum(0)[:-1] / weights.sum()


def _draw(counts: Tensor, number: int, seed: int) -> Tensor:
    """Draw ``number`` times with replacement from the fixations, given and returned as counts per pixel."""
    total = int(counts.sum())
    if total == 0:
        return counts
    draws = noise(torch.tensor(seed, device=counts.device), number) % total
    places = torch.searchsorted(counts.cumsum(0), draws.to(counts.dtype), right=True)
    return torch.bincount(places, minlength=len(counts)).to(counts.dtype)
