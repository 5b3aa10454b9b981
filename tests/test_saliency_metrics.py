"""Saliency metrics against what can be known without them, against worked cases, and against pysaliency."""

from __future__ import annotations

import math
import sys
import types

import numpy as np
import pytest
import torch
from random_maps import draw
from torch import Tensor

import salcap
from salcap.saliency.ground_truth import count_fixations
from salcap.saliency.metrics import METRICS, auc_judd, cc, information_gain, kld, nss, s_auc, score_saliency, sim

DENSITY_METRICS = (kld, cc, sim)
FIXATION_METRICS = (nss, auc_judd, information_gain)

# The worked case: four pixels, three fixations of which two fall on one pixel, three fixations of other images.
MAP = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64)
FIXATIONS = [(1, 1), (1.9, 1.2), (1, 0)]
OTHERS = [(0, 1), (1, 1), (0, 0)]


def counts(points, size: tuple[int, int]) -> Tensor:
    return count_fixations([points], size)[0]


def draw_counts(*shape: int, seed: int = 1) -> Tensor:
    """Few pixels with one or two fixations, most with none."""
    return (draw(*shape, seed=seed) - 1).clamp_min(0).round().to(torch.int64)


def tied_maps(*shape: int) -> Tensor:
    """Maps of five levels only: nearly all pixels are tied."""
    return draw(*shape).clamp(-1.5, 1.5).round()


# --- what each is, by hand ---


def test_the_worked_case():
    log_density, fixated = MAP.log(), counts(FIXATIONS, (2, 2))
    flat, peaked = torch.ones(2, 2), torch.tensor([[1.0, 2.0], [3.0, 8.0]])
    assert float(kld(log_density, flat)) == pytest.approx(0.25 * math.log(0.25**4 / (0.1 * 0.2 * 0.3 * 0.4)))
    assert float(sim(log_density, flat)) == pytest.approx(0.8)
    assert float(cc(log_density, peaked)) == pytest.approx(1.1 / math.sqrt(0.05 * 29))
    assert float(nss(log_density, fixated)) == pytest.approx((0.15 + 0.15 - 0.05) / 3 / math.sqrt(0.0125))
    assert float(auc_judd(log_density, fixated)) == pytest.approx(0.5 * (2 / 3 + 1) / 2 + 0.5)
    assert float(s_auc(log_density, fixated, counts(OTHERS, (2, 2)))) == pytest.approx(6 / 9)
    assert float(information_gain(log_density, fixated)) == pytest.approx(math.log2(0.4 * 0.4 * 0.2 / 0.25**3) / 3)
    known = torch.tensor([[0.7, 0.1], [0.1, 0.1]]).log()
    assert float(information_gain(log_density, fixated, known)) == pytest.approx(math.log2(4 * 4 * 2) / 3)


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 7, 13), (1, 60, 80)])
def test_a_constant_map(shape):
    constant = torch.full(shape, 0.3)
    fixated, density = draw_counts(*shape), draw(*shape).exp()
    zeros = torch.zeros(len(constant), dtype=torch.float64)
    assert torch.equal(nss(constant, fixated), zeros)
    assert torch.equal(cc(constant, density), zeros)
    assert torch.equal(cc(density.log(), torch.ones(shape)), zeros)
    assert torch.equal(auc_judd(constant, fixated), zeros + 0.5)
    assert torch.equal(s_auc(constant, fixated, draw_counts(*shape, seed=3)), zeros + 0.5)
    torch.testing.assert_close(information_gain(constant, fixated), zeros, rtol=0, atol=1e-9)
    torch.testing.assert_close(kld(constant, torch.ones(shape)), zeros, rtol=0, atol=1e-9)
    truth = density.double() / density.double().sum((1, 2), keepdim=True)
    entropy = (truth * truth.log()).sum((1, 2)) + math.log(truth[0].numel())
    torch.testing.assert_close(kld(constant, density), entropy)


@pytest.mark.parametrize("shape", [(1, 3, 5), (2, 48, 64)])
@pytest.mark.parametrize("scale", [1.0, 250.0])
def test_a_perfect_map(shape, scale):
    density = (2 * draw(*shape)).exp()
    ones = torch.ones(len(density), dtype=torch.float64)
    torch.testing.assert_close(kld(density.log(), scale * density), 0 * ones, rtol=0, atol=1e-6)
    torch.testing.assert_close(cc(density.log(), scale * density), ones)
    torch.testing.assert_close(sim(density.log(), scale * density), ones)


def test_the_best_and_the_worst_order():
    ranks = torch.arange(100.0).view(10, 10)
    top, bottom = (ranks >= 90).long(), (ranks < 10).long()
    assert float(auc_judd(ranks, top)) == 1.0
    assert float(auc_judd(ranks, bottom)) == pytest.approx(0.05)  # its straight lines: 1 / (2 * 10) above 0
    assert float(s_auc(ranks, top, bottom)) == 1.0
    assert float(s_auc(ranks, bottom, top)) == 0.0
    assert float(s_auc(ranks, top, top)) == 0.5


def test_opposite_maps():
    density = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    impossible = density.flip(1).log()
    assert float(sim(impossible, density)) == 0.0
    assert float(cc(impossible, density)) == pytest.approx(-1.0)
    assert float(kld(impossible, density)) == pytest.approx(math.log(0.5 / 2.2204e-16))  # the MIT benchmark's cap
    assert math.isfinite(float(information_gain(impossible, counts([(0, 0)], (1, 4)))))


def test_nss_reads_the_density_not_its_logarithm():
    log_density, fixated = 3 * draw(20, 30), draw_counts(20, 30)
    density = log_density.double().exp()
    expected = ((density - density.mean()) / density.std(correction=0))[fixated.bool()]
    weights = fixated[fixated.bool()]
    assert float(nss(log_density, fixated)) == pytest.approx(float((expected * weights).sum() / weights.sum()))


@pytest.mark.parametrize("make", [draw, tied_maps])
def test_areas_are_exact_whatever_the_ties(make):
    maps, fixated, others = make(3, 15, 20), draw_counts(3, 15, 20), draw_counts(3, 15, 20, seed=5)
    for values, fix, other, judd, shuffled in zip(
        maps, fixated, others, auc_judd(maps, fixated), s_auc(maps, fixated, others), strict=True
    ):
        hits = values.flatten().repeat_interleave(fix.flatten()).numpy()
        negatives = values.flatten().repeat_interleave(other.flatten()).numpy()
        pairs = hits[:, None] - negatives
        assert float(shuffled) == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
        free = values[fix == 0].numpy()
        curve = [(0.0, 0.0), *((np.mean(free >= t), np.mean(hits >= t)) for t in sorted(hits)[::-1]), (1.0, 1.0)]
        x, y = np.array(curve).T
        assert float(judd) == pytest.approx((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())


def test_drawn_negatives_follow_the_seed_and_tend_to_all():
    log_density, fixated, others = draw(2, 20, 30), draw_counts(2, 20, 30), draw_counts(20, 30, seed=7)
    few = s_auc(log_density, fixated, others, num_negatives=10, seed=3)
    assert torch.equal(s_auc(log_density, fixated, others, num_negatives=10, seed=3), few)
    assert not torch.equal(s_auc(log_density, fixated, others, num_negatives=10, seed=4), few)
    assert torch.equal(s_auc(log_density[1], fixated[1], others, num_negatives=10, seed=3), few[1])
    every = s_auc(log_density, fixated, others)
    many = s_auc(log_density, fixated, others, num_negatives=100_000)
    torch.testing.assert_close(many, every, rtol=0, atol=0.005)
    one = torch.zeros(20, 30)
    one[4, 5] = 3
    assert torch.equal(s_auc(log_density, fixated, one, num_negatives=1), s_auc(log_density, fixated, one))
    with pytest.raises(ValueError, match="num_negatives must be at least 1, got 0"):
        s_auc(log_density, fixated, others, num_negatives=0)


# --- what all keep ---


@pytest.mark.parametrize("metric", [*DENSITY_METRICS, *FIXATION_METRICS, s_auc], ids=lambda metric: metric.__name__)
def test_a_batch_is_its_frames_and_constants_and_dtypes_do_not_matter(metric):
    maps = 2 * draw(2, 3, 16, 20)
    truth = [draw(2, 3, 16, 20, seed=2).exp()] if metric in DENSITY_METRICS else [draw_counts(2, 3, 16, 20)]
    truth += [draw_counts(2, 3, 16, 20, seed=9)] if metric is s_auc else []
    together = metric(maps, *truth)
    assert together.shape == (2, 3)
    assert together.dtype == torch.float64
    for i in range(2):
        torch.testing.assert_close(metric(maps[i], *(t[i] for t in truth)), together[i])
        for j in range(3):
            torch.testing.assert_close(metric(maps[i, j], *(t[i, j] for t in truth)), together[i, j])
    torch.testing.assert_close(metric(maps.double() + 50, *truth), together)


@pytest.mark.parametrize("metric", [*DENSITY_METRICS, *FIXATION_METRICS], ids=lambda metric: metric.__name__)
def test_a_frame_without_ground_truth_is_nan_and_leaves_the_others_alone(metric):
    maps, truth = draw(2, 6, 8), draw_counts(2, 6, 8, seed=4)
    alone = metric(maps[1], truth[1])
    truth[0] = 0
    values = metric(maps, truth)
    assert math.isnan(float(values[0]))
    assert float(values[1]) == float(alone)


def test_areas_without_anything_to_compare_are_nan():
    maps, fixated = draw(6, 8), draw_counts(6, 8)
    assert math.isnan(float(auc_judd(maps, torch.ones(6, 8))))
    assert math.isnan(float(s_auc(maps, fixated, torch.zeros(6, 8))))
    assert math.isnan(float(s_auc(maps, fixated, torch.zeros(6, 8), num_negatives=5)))
    assert math.isnan(float(s_auc(maps, torch.zeros(6, 8), fixated)))


@pytest.mark.parametrize("metric", [*DENSITY_METRICS, *FIXATION_METRICS], ids=lambda metric: metric.__name__)
@pytest.mark.parametrize(
    "log_density, truth, message",
    [
        (torch.zeros(2, 4, 4), torch.ones(4, 4), r"shape \(2, 4, 4\), got \(4, 4\)"),
        (torch.zeros(4, 4), torch.full((4, 4), -1.0), "at least 0, got -1 to -1"),
        (torch.zeros(4, 4), torch.eye(4) - 0.0011, "at least 0, got -0.00109"),
        (torch.zeros(4, 4), torch.full((4, 4), float("nan")), "finite"),
        (torch.full((4, 4), float("nan")), torch.ones(4, 4), "NaN"),
        (torch.full((4, 4), float("-inf")), torch.ones(4, 4), "finite value"),
    ],
)
def test_metrics_fail_on_what_is_no_map(metric, log_density, truth, message):
    with pytest.raises(ValueError, match=message):
        metric(log_density, truth)


@pytest.mark.parametrize("metric", DENSITY_METRICS, ids=lambda metric: metric.__name__)
def test_a_density_that_rounding_made_negative_counts_as_zero_there(metric):
    maps, truth = draw(6, 8), draw(6, 8, seed=2).exp()
    truth[0, 0] = 0.0
    exact = truth.clone()
    truth[0, 0] = -1e-9  # as a Fourier transform leaves it
    assert torch.equal(metric(maps, truth), metric(maps, exact))


# --- agreement with pysaliency ---


@pytest.fixture(scope="module")
def pysaliency():
    """The package, which in 0.2.22 asks for two things that newer setuptools and numpy have not."""
    with pytest.MonkeyPatch.context() as patch:
        if "pkg_resources" not in sys.modules:
            resources = types.ModuleType("pkg_resources")
            resources.resource_string = resources.resource_listdir = None  # type: ignore[attr-defined]
            patch.setitem(sys.modules, "pkg_resources", resources)
        patch.setattr(np, "trapz", np.trapezoid if hasattr(np, "trapezoid") else np.trapz, raising=False)
        yield pytest.importorskip("pysaliency", exc_type=ImportError)


@pytest.mark.parametrize("make", [draw, tied_maps])
def test_agreement_with_pysaliency(pysaliency, make):
    """By its own models and fixations, also for which pixels are negatives, and whose fixations."""
    maps, truths = 2 * make(3, 24, 32).double(), draw(3, 24, 32, seed=2).double().exp()
    fixated = draw_counts(3, 24, 32)
    places = [torch.stack(frame.nonzero(as_tuple=True)).repeat_interleave(frame[frame > 0], 1) for frame in fixated]

    class Given(pysaliency.Model):
        def _log_density(self, stimulus):
            return maps[int(stimulus[0, 0, 0])].flatten().log_softmax(0).view(24, 32).numpy()

    class AsMap(pysaliency.SaliencyMapModel):
        def _saliency_map(self, stimulus):
            return np.exp(Given()._log_density(stimulus))

    stimuli = pysaliency.Stimuli([np.full((24, 32, 3), number, np.uint8) for number in range(3)])
    fixations = pysaliency.FixationTrains.from_fixation_trains(
        [x.numpy() for _, x in places], [y.numpy() for y, _ in places], [np.arange(y.numel()) for y, _ in places],
        range(3), [0, 0, 0],
    )  # fmt: skip
    weights = fixated.sum((1, 2))
    others = fixated.sum(0) - fixated
    expected = AsMap().AUC_Judd(stimuli, fixations, jitter=False)
    assert float(auc_judd(maps, fixated).mean()) == pytest.approx(expected, abs=1e-9)
    expected = AsMap().sAUC(stimuli, fixations, average="image")
    assert float(s_auc(maps, fixated, others).mean()) == pytest.approx(expected, abs=1e-9)
    expected = AsMap().NSSs(stimuli, fixations).mean()
    assert float((nss(maps, fixated) * weights).sum() / weights.sum()) == pytest.approx(expected, abs=1e-9)
    expected = Given().information_gains(stimuli, fixations, average="fixation").mean()
    gain = (information_gain(maps, fixated) * weights).sum() / weights.sum()
    assert float(gain) == pytest.approx(expected, abs=1e-8)
    for log_density, truth in zip(maps, truths, strict=True):
        arrays = log_density.exp().numpy(), truth.numpy()
        assert float(kld(log_density, truth)) == pytest.approx(pysaliency.metrics.MIT_KLDiv(*arrays), abs=1e-9)
        assert float(cc(log_density, truth)) == pytest.approx(pysaliency.metrics.CC(*arrays), abs=1e-9)
        assert float(sim(log_density, truth)) == pytest.approx(pysaliency.metrics.SIM(*arrays), abs=1e-9)


# --- fixations on a grid ---


def test_count_fixations_cuts_fractions_off():
    maps = count_fixations([[(0.99, 1.01), (2, 1), (2.5, 1.5)], np.empty((0, 2)), torch.tensor([[0.0, 0.0]])], (2, 3))
    assert maps.tolist() == [[[0, 0, 0], [1, 0, 2]], [[0, 0, 0], [0, 0, 0]], [[1, 0, 0], [0, 0, 0]]]


@pytest.mark.parametrize(
    "points, message",
    [
        ([(1, 1), (3, 0)], r"1 of 2 fixations of frame 0 lie outside its 3x2 map, such as \(3.0, 0.0\)"),
        ([(0, 2)], "outside"),
        ([(-0.1, 0)], "outside"),
        ([(float("nan"), 0)], "outside"),
        ([(1, 1, 250)], r"got \(1, 3\) for frame 0"),
        ((1, 1), r"got \(2,\) for frame 0"),
    ],
)
def test_count_fixations_fails(points, message):
    with pytest.raises(ValueError, match=message):
        count_fixations([points], (2, 3))


# --- all at once ---


def test_score_saliency_gives_what_the_metrics_give():
    scores = salcap.score_saliency(MAP.log(), fixations=[FIXATIONS], density=MAP, other_fixations=[OTHERS])
    assert tuple(scores) == METRICS
    assert scores["nss"] == pytest.approx(0.745356, abs=1e-6)
    assert scores["auc_judd"] == pytest.approx(0.916667, abs=1e-6)
    assert scores["s_auc"] == pytest.approx(0.666667, abs=1e-6)
    assert scores["information_gain"] == pytest.approx(0.344739, abs=1e-6)
    assert (scores["kld"], scores["cc"], scores["sim"]) == pytest.approx((0, 1, 1), abs=1e-9)
    array = score_saliency(MAP.log().numpy()[None], [np.array(FIXATIONS)], MAP.numpy(), [np.array(OTHERS)])
    assert array == pytest.approx(scores)
    assert score_saliency(MAP.log(), [FIXATIONS], baseline=MAP.log().numpy())["information_gain"] == 0.0


def test_score_saliency_is_the_mean_over_the_frames_that_can_be_scored():
    maps, density = 2 * draw(3, 10, 12), draw(3, 10, 12, seed=1).exp()
    points = [[(3, 4), (11.5, 9.9)], [], [(0, 0)]]
    density[0] = 0
    scores = score_saliency(maps, points, density)
    frames = [score_saliency(maps[i], [points[i]], density[i]) for i in range(3)]
    for name in ("nss", "auc_judd", "information_gain"):
        assert frames[1][name] is None
        assert scores[name] == pytest.approx((frames[0][name] + frames[2][name]) / 2)
    for name in ("kld", "cc", "sim"):
        assert frames[0][name] is None
        assert scores[name] == pytest.approx((frames[1][name] + frames[2][name]) / 2)


def test_score_saliency_gives_none_where_the_ground_truth_is_not_given():
    def missing(**truth) -> set[str]:
        return {name for name, value in score_saliency(MAP.log(), **truth).items() if value is None}

    assert missing(fixations=[FIXATIONS]) == {"kld", "cc", "sim", "s_auc"}
    assert missing(density=MAP) == {"nss", "auc_judd", "s_auc", "information_gain"}
    assert missing(fixations=[FIXATIONS], other_fixations=[[]], density=MAP) == {"s_auc"}
    assert missing(fixations=[[]], density=0 * MAP, other_fixations=[OTHERS]) == set(METRICS)


@pytest.mark.parametrize(
    "log_density, truth, message",
    [
        (torch.zeros(2, 2), {}, "needs fixations, density or both"),
        (torch.zeros(2, 2), {"density": torch.ones(2, 2), "other_fixations": [[]]}, "without fixations"),
        (torch.zeros(4), {"fixations": [[]]}, r"\(T, H, W\) or \(H, W\), got \(4,\)"),
        (torch.zeros(1, 1, 2, 2), {"fixations": [[]]}, r"got \(1, 1, 2, 2\)"),
        (torch.zeros(2, 2), {"fixations": [(0, 0), (1, 1)]}, "one list of points for each of 1 frames, got 2"),
        (torch.zeros(2, 2), {"fixations": [(0, 0)]}, r"got \(2,\)"),
        (torch.zeros(2, 2), {"fixations": [[(2, 0)]]}, "outside"),
        (torch.zeros(2, 2), {"fixations": [[(0, 0)]], "other_fixations": [[], []]}, "other_fixations must be one list"),
        (torch.zeros(2, 2), {"fixations": [[(0, 0)]], "baseline": torch.zeros(3, 3)}, "baseline must have"),
        (torch.zeros(2, 2), {"density": torch.ones(3, 2)}, "density must have the prediction's shape"),
        (torch.zeros(2, 2) + float("nan"), {"fixations": [[(0, 0)]]}, "NaN"),
    ],
)
def test_score_saliency_fails(log_density, truth, message):
    with pytest.raises(ValueError, match=message):
        score_saliency(log_density, **truth)
