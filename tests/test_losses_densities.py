"""What the losses on maps share."""

from __future__ import annotations

import pytest
import torch
from random_maps import draw

from salcap.distill.losses.densities import (
    at_grid,
    correlation,
    ground_truth_at_grid,
    kl_divergence,
    relative_density,
)


def test_kl_divergence_is_that_of_torch_and_finite_where_the_prediction_has_no_mass():
    target, prediction = draw(3, 7, seed=1).log_softmax(-1), draw(3, 7, seed=2).log_softmax(-1)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=target), torch.distributions.Categorical(logits=prediction)
    )
    torch.testing.assert_close(kl_divergence(target, prediction), expected)
    impossible = torch.tensor([0.0, -torch.inf])
    assert float(kl_divergence(impossible, impossible)) == 0
    torch.testing.assert_close(kl_divergence(torch.tensor([0.5, 0.5]).log(), impossible), torch.tensor(49.306853))


def test_correlation_is_pearsons_and_0_for_a_constant_map():
    first, second = draw(3, 4, 5, seed=1), draw(3, 4, 5, seed=2)
    expected = [
        torch.corrcoef(torch.stack([a.exp().flatten(), b.exp().flatten()]))[0, 1]
        for a, b in zip(first, second, strict=True)
    ]
    log_first, log_second = (maps - maps.flatten(1).logsumexp(1)[:, None, None] for maps in (first, second))
    torch.testing.assert_close(correlation(log_first, log_second), torch.stack(expected))
    constant = torch.full((3, 4, 5), 1 / 20).log()
    torch.testing.assert_close(correlation(constant, log_second), torch.zeros(3), atol=1e-4, rtol=0)


def test_relative_density_has_mean_1_on_any_grid():
    for size in ((1, 1), (3, 5), (16, 16)):
        like = torch.empty(2, *size)
        torch.testing.assert_close(relative_density(at_grid("maps", draw(2, 4, 4), like)).mean((1, 2)), torch.ones(2))


@pytest.mark.parametrize("size", [(8, 8), (4, 4), (4, 16), (16, 16)])
def test_ground_truth_keeps_the_shares_of_lone_fixations(size):
    density = torch.zeros(1, 8, 8)
    density[0, :2, :2] = 3.0  # twelve fixations in one corner
    density[0, 7, 7] = 4.0  # four on one pixel
    log_density = ground_truth_at_grid(density, torch.empty(1, *size))
    assert log_density.shape == (1, *size)
    truth = log_density.exp()
    torch.testing.assert_close(truth.sum(), torch.tensor(1.0))
    left, right = truth[0, : size[0] // 2, : size[1] // 2].sum(), truth[0, size[0] // 2 :, size[1] // 2 :].sum()
    torch.testing.assert_close(left / right, torch.tensor(3.0), rtol=0.35, atol=0.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_ground_truth_fails_on_values_that_are_no_density(bad):
    density = torch.ones(2, 3, 3)
    density[1, 0, 0] = bad
    with pytest.raises(ValueError, match="finite and >= 0"):
        ground_truth_at_grid(density, torch.empty(2, 3, 3))


def test_ground_truth_fails_without_mass_and_with_another_number_of_maps():
    with pytest.raises(ValueError, match="mass in every map"):
        ground_truth_at_grid(torch.zeros(1, 3, 3), torch.empty(1, 3, 3))
    with pytest.raises(ValueError, match=r"density must be \(2, h, w\)"):
        ground_truth_at_grid(torch.ones(1, 3, 3), torch.empty(2, 3, 3))
