"""Coupled distillation (UVA-Net): the teacher's map and the ground truth at once, then the fused stream."""

from __future__ import annotations

from math import log

import pytest
import torch
from random_maps import draw

from salcap.distill.losses import CoupledLoss, fused_loss
from salcap.distill.losses.coupled import DISTANCES
from salcap.saliency.density import resize_log_density

every_distance = pytest.mark.parametrize("distance", DISTANCES)

# one frame of two pixels: student, teacher, ground truth
STUDENT = torch.tensor([[[0.25, 0.75]]])
TEACHER = torch.tensor([[[0.5, 0.5]]])
TRUTH = torch.tensor([[[1.0, 0.0]]])
# in relative densities: (0.5, 1.5) from (1, 1), and from (2, 0)
TO_TEACHER = {"l2": 0.25, "kld": 0.5 * log(4 / 3)}
TO_TRUTH = {"l2": 2.25, "kld": log(4)}


@every_distance
def test_zero_where_student_teacher_and_ground_truth_agree(distance):
    log_density = draw(2, 4, 6)
    density = log_density.exp()
    assert float(CoupledLoss(0.5, distance)(log_density, log_density, density)) == pytest.approx(0, abs=1e-6)
    assert float(fused_loss(log_density, density, distance=distance)) == pytest.approx(0, abs=1e-6)
    assert float(CoupledLoss(0.5, distance)(log_density, log_density + 1)) == pytest.approx(0, abs=1e-6)


@every_distance
@pytest.mark.parametrize("mu", [0.0, 0.3, 1.0])
def test_hand_computed(mu, distance):
    loss = CoupledLoss(mu, distance)(STUDENT.log(), TEACHER.log(), 7 * TRUTH)
    assert float(loss) == pytest.approx(mu * TO_TEACHER[distance] + (1 - mu) * TO_TRUTH[distance], rel=1e-5)
    assert float(fused_loss(STUDENT.log(), 7 * TRUTH, distance=distance)) == pytest.approx(TO_TRUTH[distance], rel=1e-5)


@every_distance
def test_an_unlabelled_sample_has_the_teacher_alone_with_weight_1(distance):
    student, teacher = STUDENT.log().repeat(2, 1, 1), TEACHER.log().repeat(2, 1, 1)
    density = torch.cat([torch.full_like(TRUTH, torch.nan), TRUTH])  # what stands for it is not read
    loss = CoupledLoss(0.3, distance)(student, teacher, density, torch.tensor([False, True]))
    labelled = 0.3 * TO_TEACHER[distance] + 0.7 * TO_TRUTH[distance]
    assert float(loss) == pytest.approx((TO_TEACHER[distance] + labelled) / 2, rel=1e-5)
    alone = float(CoupledLoss(0.3, distance)(student, teacher))
    assert alone == pytest.approx(TO_TEACHER[distance], rel=1e-5)
    nobody = torch.tensor([False, False])
    assert float(CoupledLoss(0.3, distance)(student, teacher, density, nobody)) == alone
    assert float(CoupledLoss(0.3, distance)(student, teacher, None, nobody)) == alone


@every_distance
def test_fused_learns_from_the_teachers_mixture_where_unlabelled(distance):
    one_sided = torch.tensor([[[0.0, -torch.inf]]])  # all mass on the first pixel: the mixture is (3/4, 1/4)
    expected = {"l2": 1.0, "kld": 0.75 * log(3) + 0.25 * log(1 / 3)}[distance]
    teachers = [TEACHER.log(), one_sided]
    assert float(fused_loss(STUDENT.log(), None, teachers, distance=distance)) == pytest.approx(expected, rel=1e-5)
    both = fused_loss(
        STUDENT.log().repeat(2, 1, 1),
        TRUTH.repeat(2, 1, 1),
        [teacher.repeat(2, 1, 1) for teacher in teachers],
        torch.tensor([True, False]),
        distance,
    )
    assert float(both) == pytest.approx((TO_TRUTH[distance] + expected) / 2, rel=1e-5)


@every_distance
def test_maps_of_other_grids_are_brought_to_the_students(distance):
    student, teacher, density = draw(2, 4, 5, seed=1), draw(2, 9, 8, seed=2), draw(2, 4, 5, seed=3).exp()
    criterion = CoupledLoss(0.5, distance)
    resized = resize_log_density(teacher, (4, 5))
    torch.testing.assert_close(criterion(student, teacher, density), criterion(student, resized, density))
    torch.testing.assert_close(
        fused_loss(student, None, [teacher, resized], distance=distance),
        fused_loss(student, None, [resized], distance=distance),
    )


@every_distance
def test_the_scale_does_not_depend_on_the_grid(distance):
    student, teacher, density = draw(2, 3, 3, seed=1), draw(2, 3, 3, seed=2), draw(2, 3, 3, seed=3).exp()
    finer = [maps.repeat_interleave(2, 1).repeat_interleave(2, 2) for maps in (student, teacher, density)]
    criterion = CoupledLoss(0.5, distance)
    torch.testing.assert_close(criterion(*finer), criterion(student, teacher, density))


@pytest.mark.parametrize(
    "arguments, message",
    [((1.5,), "mu must be in 0..1, got 1.5"), ((0.5, "l1"), "unknown distance 'l1', allowed: l2, kld")],
)
def test_unusable_settings_fail(arguments, message):
    with pytest.raises(ValueError, match=message):
        CoupledLoss(*arguments)


@pytest.mark.parametrize(
    "teacher, density, labelled, message",
    [
        (torch.zeros(3, 4, 5), None, None, r"teacher_log_density must be \(2, h, w\)"),
        (torch.zeros(2, 4, 5, 1), None, None, r"teacher_log_density must be \(2, h, w\)"),
        (torch.zeros(2, 4, 5), torch.ones(1, 4, 5), None, r"density must be \(2, h, w\)"),
        (torch.zeros(2, 4, 5), torch.ones(2, 4, 5), torch.tensor([True]), r"labelled must be \(2,\) bool"),
        (torch.zeros(2, 4, 5), torch.ones(2, 4, 5), torch.tensor([1, 0]), "got .* torch.int64"),
        (torch.zeros(2, 4, 5), None, torch.tensor([True, False]), "1 samples are marked as labelled"),
        (torch.zeros(2, 4, 5), torch.zeros(2, 4, 5), None, "mass in every map"),
        (torch.full((2, 4, 5), torch.nan), None, None, "NaN"),
    ],
)
def test_unusable_maps_fail(teacher, density, labelled, message):
    with pytest.raises(ValueError, match=message):
        CoupledLoss()(torch.zeros(2, 4, 5), teacher, density, labelled)


def test_fused_fails_without_any_target_and_on_an_unknown_distance():
    with pytest.raises(ValueError, match="1 of 2 samples have neither"):
        fused_loss(torch.zeros(2, 4, 5), torch.ones(2, 4, 5), labelled=torch.tensor([True, False]))
    with pytest.raises(ValueError, match="unknown distance 'mse'"):
        fused_loss(torch.zeros(2, 4, 5), torch.ones(2, 4, 5), distance="mse")
