"""Collaborative transfer (Bi-KD): of each sample, the best model teaches the others."""

from __future__ import annotations

from math import log

import pytest
import torch
from random_maps import draw
from torch import Tensor

from salcap.distill.losses import collaborative_loss
from salcap.distill.losses.densities import at_grid, correlation, ground_truth_at_grid, kl_divergence
from salcap.saliency.density import resize_log_density


def frames(*pairs: tuple[float, float]) -> Tensor:
    """Densities of two pixels as (N, 1, 2)."""
    return torch.tensor(pairs)[:, None]


def kl(target: tuple[float, float], prediction: tuple[float, float]) -> float:
    return sum(t * log(t / p) for t, p in zip(target, prediction, strict=True))


@pytest.mark.parametrize("num_models", [2, 3])
def test_lowest_where_all_models_equal_the_ground_truth(num_models):
    truth = draw(2, 4, 5)
    result = collaborative_loss([truth] * num_models, truth.exp())
    assert float(result.total) == pytest.approx(-num_models, abs=1e-5)
    torch.testing.assert_close(result.label_losses, torch.full((num_models, 2), -1.0))


def test_hand_computed_of_two_samples_with_a_teacher_each():
    truth, close, far = (0.25, 0.75), (0.4, 0.6), (0.75, 0.25)
    good, bad = kl(truth, close) - 1, kl(truth, far) + 1  # the correlation of two pixels is 1 or -1
    student, teacher = frames(far, close), frames(close, far)
    result = collaborative_loss([student.log(), teacher.log()], 5 * frames(truth, truth))
    torch.testing.assert_close(result.label_losses, torch.tensor([[bad, good], [good, bad]]), rtol=1e-5, atol=1e-5)
    assert result.teacher_index.tolist() == [1, 0]
    assert float(result.total) == pytest.approx(good + bad + kl(close, far), rel=1e-5)
    assert not result.label_losses.requires_grad


def test_only_the_unique_best_of_three_teaches_both_others():
    truth, best, second, third = (0.25, 0.75), (0.3, 0.7), (0.4, 0.6), (0.75, 0.25)
    result = collaborative_loss([frames(one).log() for one in (third, best, second)], frames(truth))
    assert result.teacher_index.tolist() == [1]
    labels = kl(truth, best) + kl(truth, second) + kl(truth, third) - 1
    assert float(result.total) == pytest.approx(labels + kl(best, third) + kl(best, second), rel=1e-5)


def test_nobody_teaches_on_a_tie_of_three():
    truth, tied, mirrored, worse = (0.5, 0.5), (0.4, 0.6), (0.6, 0.4), (0.1, 0.9)
    result = collaborative_loss([frames(one, one).log() for one in (worse, tied, mirrored)], frames(truth, tied))
    assert result.teacher_index.tolist() == [-1, 1]  # of the second sample one model is the unique best
    alone = collaborative_loss([frames(one).log() for one in (worse, tied, mirrored)], frames(truth))
    assert float(alone.total) == pytest.approx(float(alone.label_losses.sum()), rel=1e-6)


def test_the_student_teaches_on_a_tie_of_two():
    student, teacher = (0.2, 0.8), (0.8, 0.2)
    result = collaborative_loss([frames(student).log(), frames(teacher).log()], frames((0.5, 0.5)))
    assert result.label_losses[0].equal(result.label_losses[1])
    assert result.teacher_index.tolist() == [0]  # m_T = 1[l_T < l_S], m_S = 1 - m_T
    labels = float(result.label_losses.sum())
    assert float(result.total) == pytest.approx(labels + kl(student, teacher), rel=1e-5)


@pytest.mark.parametrize("detach_teacher", [False, True])
def test_both_are_changed_and_the_transfer_reaches_the_teacher_unless_detached(detach_teacher):
    density = draw(2, 3, 4, seed=3).exp()
    teacher = (density.log() + 0.3 * draw(2, 3, 4, seed=1)).requires_grad_()
    student = draw(2, 3, 4, seed=2).requires_grad_()
    result = collaborative_loss([student, teacher], density, detach_teacher)
    assert result.teacher_index.tolist() == [1, 1]
    result.total.backward()
    assert float(student.grad.abs().max()) > 0
    again = teacher.detach().requires_grad_()
    log_density, truth = at_grid("teacher", again, density), ground_truth_at_grid(density, density)
    label_loss = kl_divergence(truth.flatten(1), log_density.flatten(1)) - correlation(log_density, truth)
    label_loss.mean().backward()
    assert torch.allclose(teacher.grad, again.grad, atol=1e-6) == detach_teacher


def test_maps_of_other_grids_are_brought_to_the_students():
    models = [draw(2, 4, 5, seed=1), draw(2, 9, 8, seed=2), draw(2, 2, 3, seed=3)]
    density = draw(2, 4, 5, seed=4).exp()
    resized = [resize_log_density(maps, (4, 5)) for maps in models]
    result, expected = collaborative_loss(models, density), collaborative_loss(resized, density)
    torch.testing.assert_close(result.total, expected.total)
    torch.testing.assert_close(result.label_losses, expected.label_losses)


# bilinear resizing blurs the peak a little; half the grid cannot hold it
@pytest.mark.parametrize("size, tolerance", [((24, 30), 0.03), ((32, 40), 0.03), ((12, 10), 0.03), ((4, 5), 0.15)])
def test_a_ground_truth_of_another_grid_gives_the_same_losses(size, tolerance):
    def bump(height: int, width: int) -> Tensor:
        y, x = ((torch.arange(n) + 0.5) / n - 0.4 for n in (height, width))
        return (-8 * (y[:, None] ** 2 + x**2)).exp().expand(2, height, width)

    models = [draw(2, 8, 10, seed=1), draw(2, 8, 10, seed=2)]
    expected = collaborative_loss(models, bump(8, 10)).label_losses
    losses = collaborative_loss(models, bump(*size)).label_losses
    torch.testing.assert_close(losses, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "models, density, message",
    [
        ([torch.zeros(2, 3, 4)], torch.ones(2, 3, 4), "at least 2 models, got 1"),
        ([torch.zeros(3, 4)] * 2, torch.ones(2, 3, 4), r"first model's log-density must be \(N, h, w\)"),
        ([torch.zeros(2, 3, 4), torch.zeros(1, 3, 4)], torch.ones(2, 3, 4), r"log-density 1 must be \(2, h, w\)"),
        ([torch.zeros(2, 3, 4)] * 2, torch.ones(3, 3, 4), r"density must be \(2, h, w\)"),
        ([torch.zeros(2, 3, 4)] * 2, torch.zeros(2, 3, 4), "mass in every map"),
        ([torch.full((2, 3, 4), torch.nan)] * 2, torch.ones(2, 3, 4), "NaN"),
    ],
)
def test_unusable_maps_fail(models, density, message):
    with pytest.raises(ValueError, match=message):
        collaborative_loss(models, density)
