"""First- and second-order statistics of feature maps as knowledge."""

from __future__ import annotations

import pytest
import torch
from random_maps import draw

from salcap.distill.losses import FeatureStatisticsLoss
from salcap.distill.losses.statistics import first_order_distance, gram, second_order_distance


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_zero_where_the_features_agree_up_to_scale(scale):
    features = [draw(2, 3, 4, 5, seed=1), draw(2, 6, 2, 2, seed=2)]
    loss = FeatureStatisticsLoss([3, 6], [3, 6])(features, [scale * depth for depth in features])
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_each_order_sees_what_the_other_does_not():
    features = draw(2, 3, 4, 4, seed=1)
    moved = features.flatten(2)[..., torch.randperm(16, generator=torch.Generator().manual_seed(0))].view_as(features)
    relabelled = features[:, [2, 0, 1]]
    assert second_order_distance(moved, features).item() == pytest.approx(0, abs=1e-6)
    assert first_order_distance(moved, features).item() > 0.1
    assert first_order_distance(relabelled, features).item() == pytest.approx(0, abs=1e-6)
    assert second_order_distance(relabelled, features).item() > 0.01


def test_hand_computed():
    # two channels on two pixels: each its own pixel; both on the first pixel, the second channel silent
    student, teacher = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]), torch.tensor([[[[2.0, 0.0]], [[0.0, 0.0]]]])
    torch.testing.assert_close(gram(student), torch.eye(2)[None] / 2)
    # F1: (1, 1) / sqrt(2) and (1, 0); G: the identity / sqrt(2) and (1, 0; 0, 0). Both 2 - 2 / sqrt(2) apart.
    expected = 2 - 2**0.5
    assert first_order_distance(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert second_order_distance(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    loss = FeatureStatisticsLoss([2], [2], first_order=3.0, second_order=0.5)([student], [teacher])
    assert loss.item() == pytest.approx(3.5 * expected, rel=1e-5)


@pytest.mark.parametrize("first_order, second_order", [(1.0, 0.0), (0.0, 2.0)])
def test_a_weight_of_0_leaves_a_term_out(first_order, second_order):
    student, teacher = draw(2, 3, 4, 4, seed=1), draw(2, 3, 4, 4, seed=2)
    loss = FeatureStatisticsLoss([3], [3], first_order, second_order)([student], [teacher])
    term = first_order_distance if first_order else second_order_distance
    torch.testing.assert_close(loss, (first_order + second_order) * term(student, teacher))


def test_the_mean_over_depths():
    student, teacher = draw(2, 3, 4, 4, seed=1), draw(2, 3, 4, 4, seed=2)
    once = FeatureStatisticsLoss([3], [3])([student], [teacher])
    twice = FeatureStatisticsLoss([3, 3], [3, 3])([student] * 2, [teacher] * 2)
    torch.testing.assert_close(twice, once)


def test_the_finer_grid_is_brought_to_the_coarser():
    coarse = draw(2, 3, 4, 5, seed=1)
    finer = coarse.repeat_interleave(2, 2).repeat_interleave(3, 3)
    criterion = FeatureStatisticsLoss([3], [3])
    assert criterion([coarse], [finer]).item() == pytest.approx(0, abs=1e-6)
    assert criterion([finer], [coarse]).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("teacher_channels, identity", [(3, True), (5, False), (2, False)])
def test_the_projection_starts_as_the_identity_where_it_can_and_learns(teacher_channels, identity):
    criterion = FeatureStatisticsLoss([3], [teacher_channels])
    weight = criterion.projections[0].weight
    assert weight.shape == (teacher_channels, 3, 1, 1)
    assert torch.equal(weight[:, :, 0, 0], torch.eye(teacher_channels, 3)) == identity
    optimiser = torch.optim.SGD(criterion.parameters(), lr=0.1)
    student, teacher = [draw(2, 3, 4, 4, seed=1)], [draw(2, teacher_channels, 6, 6, seed=2)]
    losses = []
    for _ in range(3):
        losses.append(criterion(student, teacher))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[0] > losses[1] > losses[2]


def test_dead_features_have_a_finite_gradient():
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    FeatureStatisticsLoss([3], [3])([student], [draw(2, 3, 4, 4)]).backward()
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([], []), "at least one"),
        (([3, 4], [3]), "the same depths"),
        (([3], [3], -1.0), "must be >= 0"),
        (([3], [3], 0.0, 0.0), "not both 0"),
    ],
)
def test_unusable_settings_fail(arguments, message):
    with pytest.raises(ValueError, match=message):
        FeatureStatisticsLoss(*arguments)


@pytest.mark.parametrize(
    "student, teacher, message",
    [
        ([(2, 3, 4, 4)] * 2, [(2, 5, 4, 4)], "features of 1 depths, got 2 of the student and 1 of the teacher"),
        ([(2, 4, 4, 4)], [(2, 5, 4, 4)], r"student's features at depth 0 must be \(N, 3, h, w\), got \(2, 4, 4, 4\)"),
        ([(2, 3, 4, 4)], [(2, 5, 4)], r"teacher's features at depth 0 must be \(N, 5, h, w\), got \(2, 5, 4\)"),
        ([(2, 3, 4, 4)], [(1, 5, 4, 4)], "2 samples of the student, 1 of the teacher"),
    ],
)
def test_unusable_features_fail(student, teacher, message):
    criterion = FeatureStatisticsLoss([3], [5])
    with pytest.raises(ValueError, match=message):
        criterion([torch.zeros(shape) for shape in student], [torch.zeros(shape) for shape in teacher])
