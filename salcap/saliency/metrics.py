"""How well saliency maps predict where people look.

The prediction comes first and is a log-density; what people did, the ground truth, comes second. Each metric takes any
number of frames, (..., H, W), gives one float64 value a frame, and NaN for a frame whose ground truth says nothing: no
fixation, no mass. Which of the many definitions each one is: Bylinskii, Judd, Oliva, Torralba & Durand, "What do
different evaluation metrics tell us about saliency models?", TPAMI 2019, and the code of its MIT benchmark.
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
    """Kullback-Leibler divergence of the ground truth q from the prediction p, in nats: sum q log(e + q / (p + e)).

    Args:
        log_density: (..., H, W) prediction, up to a constant per frame.
        density: (..., H, W) ground truth, at least 0, of any sum.

    Returns:
        (...) 0 where both agree, lower is better; NaN for a frame without mass. At most about 36: the MIT benchmark's
        e = 2.2204e-16 caps what a pixel costs that was called impossible.

    Source: KLdiv.m of the MIT benchmark, pysaliency's ``MIT_KLDiv``.
    """
    predicted, truth = _two_densities(log_density, density)
    return (truth * (EPSILON + truth / (predicted + EPSILON)).log()).sum(-1)


def cc(log_density: Tensor, density: Tensor) -> Tensor:
    """Pearson's correlation coefficient over the pixels of the two densities.

    Args:
        log_density: (..., H, W) prediction, up to a constant per frame.
        density: (..., H, W) ground truth, at least 0, of any sum.

    Returns:
        (...) -1 to 1, higher is better; 0 where one of the two is constant, by definition, for a constant goes along
        with nothing; NaN for a frame without mass.

    Source: CC.m of the MIT benchmark, pysaliency's ``CC``.
    """
    predicted, truth = _two_densities(log_density, density)
    return (_standard_scores(predicted) * _standard_scores(truth)).mean(-1)


def sim(log_density: Tensor, density: Tensor) -> Tensor:
    """Similarity, the mass that the two densities share: sum min(p, q).

    Args:
        log_density: (..., H, W) prediction, up to a constant per frame.
        density: (..., H, W) ground truth, at least 0, of any sum.

    Returns:
        (...) 0 to 1, higher is better; NaN for a frame without mass.

    Source: Judd, Durand & Torralba, "A benchmark of computational models of saliency to predict human fixations",
    2012; pysaliency's ``SIM``. similarity.m of the MIT benchmark first stretches each map to 0..1, which is not done
    here: both are densities already.
    """
    return torch.minimum(*_two_densities(log_density, density)).sum(-1)


def nss(log_density: Tensor, fixation_map: Tensor) -> Tensor:
    """Normalised scanpath saliency: the predicted density, in standard deviations above its mean, at the fixations.

    Args:
        log_density: (..., H, W) prediction, up to a constant per frame; it is read as the density, its exp.
        fixation_map: (..., H, W) ground truth: the number of fixations on each pixel, see `count_fixations`.

    Returns:
        (...) mean over the fixations, higher is better, 0 is chance; 0 for a constant map; NaN without fixations.

    Source: Peters, Iyer, Itti & Koch, "Components of bottom-up gaze allocation in natural images", Vision Research
    2005; pysaliency's ``NSS`` (NSS.m of the MIT benchmark counts a pixel once and divides by n - 1).
    """
    scores = _standard_scores(_log_mass(log_density).exp())
    return _mean_at(scores, check_ground_truth("fixation_map", fixation_map, log_density))


def information_gain(log_density: Tensor, fixation_map: Tensor, baseline: Tensor | None = None) -> Tensor:
    """Bits per fixation by which the prediction tells more than a baseline: mean of log2(p + e) - log2(b + e).

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
    """Score predicted maps against what people did, by every metric for which the ground truth is given.

    Args:
        log_density: (T, H, W) or (H, W) prediction, tensor or array, up to a constant per frame.
        fixations: ground truth: for each frame a list of (x, y) in the map's own pixels, fractions cut off.
        density: ground truth: (T, H, W) or (H, W), at least 0, of any sum; usually the blurred fixations.
        other_fixations: for each frame a list of (x, y) that people fixated on other images, scaled to this map.
        baseline: (T, H, W), or (H, W) for all frames: log-density that `information_gain` compares with; None for the
            uniform density.

    Returns:
        Every name of `METRICS` -> its mean over the frames whose ground truth says something (those without fixations
        or mass are left out). None where no frame does, or where the ground truth is not given: `density` for kld, cc
        and sim, `fixations` for the others, and `other_fixations` too for s_auc.

    Raises:
        ValueError: no ground truth at all, maps or lists that do not fit the prediction, points outside the map, NaN,
            negative densities.
    """
    maps = torch.as_tensor(log_density)
    maps = maps[None] if maps.ndim == 2 else maps
    if maps.ndim != 3:
        raise ValueError(f"log_density must be (T, H, W) or (H, W), got {tuple(maps.shape)}")
    if fixations is None and density is None:
        raise ValueError("score_saliency needs fixations, density or both, got neither")
    if fixations is None and (other_fixations is not None or baseline is not None):
        raise ValueError("other_fixations and baseline score nothing without fixations")
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
    """(..., H * W) float64 whose exp sums to 1; equal values stay exactly equal."""
    normalise_log_density(log_density)  # refuses what is no map
    return log_density.double().flatten(-2).log_softmax(-1)


def _two_densities(log_density: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
    """Prediction and ground truth as (..., H * W) that sum to 1; NaN where the ground truth has no mass."""
    truth = check_ground_truth("density", density, log_density).flatten(-2)
    return _log_mass(log_density).exp(), truth / truth.sum(-1, keepdim=True)


def _standard_scores(values: Tensor) -> Tensor:
    """(..., N) in standard deviations above the mean of each row; zeros for a constant row."""
    centred = values - values.mean(-1, keepdim=True)
    scores = centred / centred.square().mean(-1, keepdim=True).sqrt()
    constant = values.amax(-1, keepdim=True) == values.amin(-1, keepdim=True)  # a mean may miss it by rounding
    return scores.masked_fill(constant, 0.0)


def _mean_at(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of (..., N) over the counted fixations; NaN where there are none."""
    counts = counts.flatten(-2)
    return (values * counts).sum(-1) / counts.sum(-1)
