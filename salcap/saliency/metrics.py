"""How well saliency maps predict where people look.

The first argument is the prediction, a log-density; the second is the ground truth. Each metric takes any number of
frames, (..., H, W), and returns one float64 value per frame, which is NaN if the ground truth of the frame has no
fixations or no mass. The definitions follow Bylinskii, Judd, Oliva, Torralba & Durand, "What do different evaluation
metrics tell us about saliency models?", TPAMI 2019, and the code of the MIT benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from salcap.saliency.auc import auc_judd, s_auc
from salcap.saliency.density import normalise_log_density
from salcap.saliency.ground_truth import check_ground_truth, count_fixations

__all__ = ["METRICS", "auc_judd", "cc", "information_gain", "kld", "nss", "s_auc", "score_saliency", "sim"]

METRICS = ("kld", "cc", "sim", "nss", "auc_judd", "s_auc", "information_gain")
EPSILON = 2.2204e-16  # the MIT benchmark's guard against log(0) and 1/0


def kld(log_density: Tensor, density: Tensor) -> Tensor:
    """Compute the Kullback-Leibler divergence of the ground truth q from the prediction p, in nats.

    It is the sum of q log(e + q / (p + e)) over the pixels.

    Args:
        log_density: (..., H, W) prediction, up to a constant per frame.
        density: (..., H, W) ground truth, at least 0, of any sum.

    Returns:
        (...) 0 if both agree, lower is better; NaN for a frame without mass. It is at most about 36, because the MIT
        benchmark's e = 2.2204e-16 limits the cost of a pixel that was predicted to be impossible.

    Source: KLdiv.m of the MIT benchmark, pysaliency's ``MIT_KLDiv``.
    """
    predicted, truth = _two_densities(log_density, density)
    return (truth * (EPSILON + truth / (predicted + EPSILON)).log()).sum(-1)


def cc(log_density: Tensor, density: Tensor) -> Tensor:
    """Compute Pearson's correlation coefficient over the pixels of the two densities.

    Args:
        log_density: (..., H, W) prediction, up to a constant per frame.
        density: (..., H, W) ground truth, at least 0, of any sum.

    Returns:
        (...) -1 to 1, higher is better; defined as 0 if one of the two is constant; NaN for a frame without mass.

    Source: CC.m of the MIT benchmark, pysaliency's ``CC``.
    """
    predicted, truth = _two_densities(log_density, density)
    return (_standard_scores(predicted) * _standard_scores(truth)).mean(-1)


def sim(log_density: Tensor, density: Tensor) -> Tensor:
    """Compute the similarity, which is the mass that the two densities share: sum min(p, q).

    Args:
        log_density: (..., H, W) prediction, up to a constant per frame.
        density: (..., H, W) ground truth, at least 0, of any sum.

    Returns:
        (...) 0 to 1, higher is better; NaN for a frame without mass.

    Source: Judd, Durand & Torralba, "A benchmark of computational models of saliency to predict human fixations",
    2012; pysaliency's ``SIM``. similarity.m of the MIT benchmark first stretches each map to 0..1. This is not
    done here, because both maps are already densities.
    """
    return torch.minimum(*_two_densities(log_density, density)).sum(-1)


def nss(log_density: Tensor, fixation_map: Tensor) -> Tensor:
    """Compute the normalised scanpath saliency.

    It is the predicted density at the fixations, in standard deviations above the mean of the map.

    Args:
        log_density: (..., H, W) prediction, up to a constant per frame. The metric is computed on its exp, the density.
        fixation_map: (..., H, W) ground truth: the number of fixations on each pixel, see `count_fixations`.

    Returns:
        (...) mean over the fixations; higher is better, 0 is chance level and the score of a constant map; NaN without
        fixations.

    Source: Peters, Iyer, Itti & Koch, "Components of bottom-up gaze allocation in natural images", Vision Research
    2005; pysaliency's ``NSS`` (NSS.m of the MIT benchmark counts a pixel once and divides by n - 1).
    """
    scores = _standard_scores(_log_mass(log_density).exp())
    return _mean_at(scores, check_ground_truth("fixation_map", fixation_map, log_density))


def information_gain(log_density: Tensor, fixation_map: Tensor, baseline: Tensor | None = None) -> Tensor:
    """Compute the information gain over a baseline in bits per fixation: the mean of log2(p + e) - log2(b + e).

    Args:
        log_density: (..., H, W) prediction, up to a constant per frame.
        fixation_map: (..., H, W) ground truth: the number of fixations on each pixel, see `count_fixations`.
        baseline: log-density of the baseline, (..., H, W), or (H, W) for all frames; None for the uniform density.

    Returns:
        (...) higher is better, 0 for the baseline itself; NaN for a frame without fixations.

    Source: Kümmerer, Wallis & Bethge, "Information-theoretic model comparison unifies saliency metrics", PNAS 2015,
    with e = 2.2204e-16 as in InfoGain.m of the MIT benchmark; pysaliency's ``information_gain`` has none.
    """
    if baseline is None:
        baseline = torch.zeros_like(log_density)
    elif baseline.shape not in (log_density.shape, log_density.shape[-2:]):
        shape = tuple(log_density.shape)
        raise ValueError(f"baseline must have the prediction's shape {shape}, got {tuple(baseline.shape)}")
    known = (_log_mass(baseline.to(log_density.device)).exp() + EPSILON).log2()
    gain = (_log_mass(log_density).exp() + EPSILON).log2() - known
    return _mean_at(gain, check_ground_truth("fixation_map", fixation_map, log_density))


def score_saliency(
    log_density: Any,
    fixations: Sequence[Any] | None = None,
    density: Any = None,
    other_fixations: Sequence[Any] | None = None,
    baseline: Any = None,
) -> dict[str, float | None]:
    """Score predicted maps by every metric for which the ground truth is given.

    Args:
        log_density: (T, H, W) or (H, W) prediction, tensor or array, up to a constant per frame.
        fixations: ground truth, a list of (x, y) for each frame, in pixels of the map. Fractions are cut off.
        density: ground truth, (T, H, W) or (H, W), at least 0, of any sum; usually the blurred fixations.
        other_fixations: for each frame a list of (x, y) that people fixated on other images, scaled to this map.
        baseline: log-density that `information_gain` compares with, (T, H, W), or (H, W) for all frames. None for the
            uniform density.

    Returns:
        A dict with every name in `METRICS` and its mean over the frames, leaving out frames without fixations or mass.
        The value is None if no frame is left, or if the ground truth is not given: kld, cc and sim need `density`, the
        others need `fixations`, and s_auc also needs `other_fixations`.

    Raises:
        ValueError: there is no ground truth, maps or lists do not match the prediction, points lie outside the map, or
            values are NaN or negative densities.
    """
    maps = torch.as_tensor(log_density)
    maps = maps[None] if maps.ndim == 2 else maps
    if maps.ndim != 3:
        raise ValueError(f"log_density must be (T, H, W) or (H, W), got {tuple(maps.shape)}")
    if fixations is None and density is None:
        raise ValueError("score_saliency needs fixations, density or both, got neither")
    if fixations is None and (other_fixations is not None or baseline is not None):
        raise ValueError("other_fixations and baseline have no use without fixations")
    values: dict[str, Tensor] = {}
    if density is not None:
        truth = torch.as_tensor(density)
        truth = truth[None] if truth.ndim == 2 else truth
        values |= {metric.__name__: metric(maps, truth) for metric in (kld, cc, sim)}
    if fixations is not None:
        counts = _counts("fixations", fixations, maps)
        values["nss"] = nss(maps, counts)
        values["auc_judd"] = auc_judd(maps, counts)
        known = None if baseline is None else torch.as_tensor(baseline)
        values["information_gain"] = information_gain(maps, counts, known)
        if other_fixations is not None:
            values["s_auc"] = s_auc(maps, counts, _counts("other_fixations", other_fixations, maps))
    means = {name: each.nanmean().item() for name, each in values.items() if not bool(each.isnan().all())}
    return {name: means.get(name) for name in METRICS}


def _counts(name: str, fixations: Sequence[Any], maps: Tensor) -> Tensor:
    if len(fixations) != len(maps):
        raise ValueError(f"{name} must be one list of points for each of {len(maps)} frames, got {len(fixations)}")
    return count_fixations(fixations, (maps.shape[-2], maps.shape[-1]))


def _log_mass(log_density: Tensor) -> Tensor:
    """Return (..., H * W) float64 whose exp sums to 1; equal values stay exactly equal."""
    normalise_log_density(log_density)  # raises for an unusable map
    return log_density.double().flatten(-2).log_softmax(-1)


def _two_densities(log_density: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
    """Return prediction and ground truth as (..., H * W) that sum to 1; NaN if the ground truth has no mass."""
    truth = check_ground_truth("density", density, log_density).flatten(-2)
    return _log_mass(log_density).exp(), truth / truth.sum(-1, keepdim=True)


def _standard_scores(values: Tensor) -> Tensor:
    """Express (..., N) in standard deviations above the mean of each row; a constant row becomes zeros."""
    centred = values - values.mean(-1, keepdim=True)
    scores = centred / centred.square().mean(-1, keepdim=True).sqrt()
    constant = values.amax(-1, keepdim=True) == values.amin(-1, keepdim=True)  # a rounded mean may differ from it
    return scores.masked_fill(constant, 0.0)


def _mean_at(values: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of (..., N) over the counted fixations; NaN without fixations."""
    counts = counts.flatten(-2)
    return (values * counts).sum(-1) / counts.sum(-1)
