"""The map on the patch grid, and what it does to visual tokens."""

from __future__ import annotations

import pytest
import torch
from random_maps import draw, peaked
from torch import Tensor
from torch.nn import functional as F

from salcap import config
from salcap.weighting import (
    attention_bias,
    pool_to_grid,
    prune_patches,
    relative_saliency,
    scale_patches,
    select_patches,
)
from salcap.weighting.apportion import apportion, bounded_shares
from salcap.weighting.policies import POLICIES, Choice, Policy, Request

every_policy = pytest.mark.parametrize("policy", POLICIES)
every_scope = pytest.mark.parametrize("scope", ["frame", "clip"])


def brute_force_pool(density: Tensor, grid: tuple[int, int], box: tuple[float, ...]) -> Tensor:
    height, width = density.shape
    left, top, right, bottom = box
    values, cells = density.tolist(), torch.zeros(grid, dtype=torch.float64)
    for i in range(grid[0]):
        for j in range(grid[1]):
            y0, y1 = (height * (top + (bottom - top) * k / grid[0]) for k in (i, i + 1))
            x0, x1 = (width * (left + (right - left) * k / grid[1]) for k in (j, j + 1))
            cells[i, j] = sum(
                values[y][x] * max(min(y1, y + 1) - max(y0, y), 0) * max(min(x1, x + 1) - max(x0, x), 0)
                for y in range(height)
                for x in range(width)
            )
    return cells


# --- pooling ---


@pytest.mark.parametrize("size, grid", [((5, 7), (2, 3)), ((3, 2), (7, 5)), ((11, 17), (6, 7)), ((1, 1), (3, 4))])
@pytest.mark.parametrize("box", [(0.0, 0.0, 1.0, 1.0), (0.1, 0.25, 0.93, 0.8), (0.125, 0.0, 0.875, 1.0)])
def test_pool_to_grid_integrates_the_density_over_each_cell(size, grid, box):
    density = draw(*size).exp()
    expected = brute_force_pool(density, grid, box).float()
    torch.testing.assert_close(pool_to_grid(density, grid, box), expected)


def test_pool_to_grid_keeps_the_mass_and_equals_average_pooling_where_it_tiles():
    density = draw(2, 3, 24, 40).exp()
    torch.testing.assert_close(pool_to_grid(density, (5, 9)).sum((-2, -1)), density.sum((-2, -1)))
    torch.testing.assert_close(pool_to_grid(density, (6, 8)), F.avg_pool2d(density, (4, 5)) * 20)


@pytest.mark.parametrize("box", [(0.5, 0.0, 0.5, 1.0), (-0.1, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, float("nan"))])
def test_pool_to_grid_fails_on_a_box_outside_the_frame(box):
    with pytest.raises(ValueError, match="box must be"):
        pool_to_grid(torch.ones(4, 4), (2, 2), box)


def test_relative_saliency_is_the_pooled_density_over_its_mean():
    log_density = draw(2, 3, 19, 23)
    saliency = relative_saliency(log_density, (4, 6), (0.1, 0.0, 0.9, 1.0))
    pooled = pool_to_grid(log_density.exp(), (4, 6), (0.1, 0.0, 0.9, 1.0)).flatten(-2)
    torch.testing.assert_close(saliency, pooled / pooled.mean(-1, keepdim=True))
    shifted = relative_saliency(log_density - 900.0, (4, 6), (0.1, 0.0, 0.9, 1.0))
    torch.testing.assert_close(shifted, saliency, rtol=1e-3, atol=1e-5)  # what float32 keeps beside 900


@pytest.mark.parametrize("size", [(1, 1), (37, 53), (64, 64), (240, 427)])
@pytest.mark.parametrize("box", [(0.0, 0.0, 1.0, 1.0), (0.22, 0.0, 0.78, 1.0)])
def test_relative_saliency_of_a_constant_map_is_exactly_one(size, box):
    saliency = relative_saliency(torch.full((2, *size), -11.3), (14, 14), box)
    assert torch.equal(saliency, torch.ones(2, 196))


def test_relative_saliency_survives_extreme_maps():
    log_density = torch.full((1, 8, 8), float("-inf"))
    log_density[0, 2, 5] = 3e4
    saliency = relative_saliency(log_density, (4, 4))
    assert saliency.tolist() == [[0.0] * 6 + [16.0] + [0.0] * 9]
    log_density = draw(1, 8, 8)
    log_density[:, :, 0] += 1e4  # outside the box, and so high that all the rest underflows beside it
    seen = relative_saliency(log_density, (4, 4), (0.25, 0.0, 1.0, 1.0))
    torch.testing.assert_close(seen, relative_saliency(log_density[:, :, 2:], (4, 4)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_relative_saliency_fails_on_values_that_are_no_log_density(value):
    log_density = draw(3, 8, 8)
    log_density[1, 4, 4] = value
    with pytest.raises(ValueError, match="NaN or"):
        relative_saliency(log_density, (2, 2))


def test_relative_saliency_fails_without_mass():
    with pytest.raises(ValueError, match="some mass"):
        relative_saliency(torch.full((1, 8, 8), float("-inf")), (2, 2))


# --- scale and bias ---


def test_scale_patches_fades_what_is_less_salient_into_the_mean():
    features = torch.tensor([[[9.0], [0.0], [4.0], [8.0]]])  # one prefix token, three patches with mean 4
    scaled = scale_patches(features, torch.tensor([[0.25, 0.75, 2.0]]), strength=0.5, num_prefix_tokens=1)
    torch.testing.assert_close(scaled, torch.tensor([[[9.0], [2.0], [4.0], [8.0]]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strength", [0.0, 0.5, 3.0])
def test_scale_patches_is_the_identity_where_it_is_neutral(dtype, strength):
    features = draw(2, 3, 1 + 49, 8).to(dtype)
    assert torch.equal(scale_patches(features, torch.ones(2, 3, 49), strength, 1), features)
    assert torch.equal(scale_patches(features, peaked(2, 3, 49), 0.0, 1), features)


def test_scale_patches_learns_its_strength():
    strength, features = torch.tensor(0.5, requires_grad=True), draw(2, 9, 4).requires_grad_()
    scale_patches(features, peaked(2, 9), strength).square().sum().backward()
    assert strength.grad != 0
    assert bool((features.grad != 0).any(-1).all())


def test_attention_bias_multiplies_the_weight_of_each_key():
    scores, saliency = draw(2, 5), peaked(2, 4)
    biased = (scores + attention_bias(saliency, strength=0.7, num_prefix_tokens=1)).softmax(-1)
    weights = scores.exp() * F.pad(saliency.pow(0.7), (1, 0), value=1.0)
    torch.testing.assert_close(biased, weights / weights.sum(-1, keepdim=True))


def test_attention_bias_is_zero_where_neutral_and_always_finite():
    assert torch.equal(attention_bias(torch.ones(2, 9), 0.5, 1), torch.zeros(2, 10))
    assert torch.equal(attention_bias(torch.tensor([0.0, 2.0]), 0.0), torch.zeros(2))
    assert bool(torch.isfinite(attention_bias(torch.tensor([0.0, 2.0]), 1e9).half()).all())


@pytest.mark.parametrize(
    "act", [attention_bias, lambda saliency, strength: scale_patches(draw(3, 1), saliency, strength)]
)
def test_scale_and_bias_fail_on_unusable_values(act):
    with pytest.raises(ValueError, match="strength must be"):
        act(torch.ones(3), -0.1)
    for value in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match="saliency must be finite"):
            act(torch.tensor([1.0, value, 1.0]), 0.5)


def test_scale_patches_fails_on_shapes_that_do_not_match():
    with pytest.raises(ValueError, match="2 prefix tokens"):
        scale_patches(draw(2, 10, 4), torch.ones(2, 9), 0.5, num_prefix_tokens=2)


# --- shares ---


def test_bounded_shares_are_proportional_within_their_bounds():
    shares = bounded_shares(torch.tensor([[3.0, 1.0, 0.0], [1.0, 1.0, 2.0]]), 8, 1.0, 5.0)
    torch.testing.assert_close(shares, torch.tensor([[5.0, 2.0, 1.0], [2.0, 2.0, 4.0]]).double())
    weights = peaked(6, 40).double()
    shares = bounded_shares(weights, 20, 0.1, 1.0)
    torch.testing.assert_close(shares.sum(-1), torch.full((6,), 20.0).double())
    free = (shares > 0.1) & (shares < 1.0)
    for row, share, inner in zip(weights, shares, free, strict=True):
        factor = (share / row)[inner].mean()
        torch.testing.assert_close(share, (factor * row).clamp(0.1, 1.0))


def test_apportion_gives_the_rest_to_the_largest_remainders():
    assert apportion(torch.tensor([[5.0, 3.0, 2.0], [0.0, 0.0, 0.0]]), 7, 1, 7).tolist() == [[4, 2, 1], [3, 2, 2]]
    assert apportion(torch.tensor([[1e9, 1.0, 1.0]]), 12, 1, 9).tolist() == [[9, 2, 1]]


# --- every policy ---


@every_policy
@every_scope
def test_keeping_all_is_the_identity_bit_for_bit(policy, scope):
    features, saliency = draw(2, 3, 1 + 30, 8), peaked(2, 3, 30)
    flat = features.flatten(1, 2)
    assert select_patches(peaked(2, 93, 1), (1, 1), 1.0, policy=policy, scope=scope).apply(flat) is flat
    kept, selection = prune_patches(features, saliency, (5, 6), 1.0, policy, scope, num_prefix_tokens=1)
    assert torch.equal(kept, features if scope == "frame" else flat)
    assert torch.equal(selection.keep_indices, torch.arange(90).expand(2, -1))
    assert select_patches(saliency, (5, 6), num_keep=30, policy=policy, scope=scope).is_identity


@every_policy
@every_scope
@pytest.mark.parametrize("grid", [(5, 6), (1, 11), (7, 2)])
def test_every_budget_is_met_to_the_token(policy, scope, grid):
    num_patches = grid[0] * grid[1]
    features, saliency = draw(2, 4 * num_patches, 3), peaked(2, 4, num_patches)
    for num_keep in range(1, num_patches):
        selection = select_patches(saliency, grid, num_keep=num_keep, policy=policy, scope=scope)
        tokens = selection.apply(features)
        assert tokens.shape == (2, selection.num_tokens, 3)
        assert selection.counts.sum(1).tolist() == [selection.num_tokens] * 2
        assert selection.counts.min() >= 1
        assert selection.counts.max() <= num_patches
        if policy == "pool":
            assert selection.num_tokens <= 4 * num_keep
        else:
            assert selection.num_tokens == 4 * num_keep
        if scope == "frame":
            assert bool((selection.counts == selection.counts[0, 0]).all())


@every_policy
@every_scope
@pytest.mark.parametrize("num_keep", [1, 2, 9, 10, 23])
def test_tokens_stand_in_the_order_of_their_frames(policy, scope, num_keep):
    saliency = peaked(3, 4, 30)
    selection = select_patches(saliency, (5, 6), num_keep=num_keep, policy=policy, scope=scope)
    assert bool((selection.keep_indices.diff(dim=1) > 0).all())
    frame_of_patch = torch.arange(4.0).repeat_interleave(30).expand(3, -1)[..., None]
    torch.testing.assert_close(selection.apply(frame_of_patch)[..., 0], selection.frame_of_token.float())
    assert bool((selection.frame_of_token.diff(dim=1) >= 0).all())
    for clip, counts in zip(selection.frame_of_token, selection.counts, strict=True):
        assert torch.equal(torch.bincount(clip, minlength=4), counts)


@every_policy
@every_scope
def test_apply_is_kept_rows_and_weighted_means(policy, scope):
    features = draw(2, 4 * 30, 8)
    selection = select_patches(peaked(2, 4, 30), (5, 6), 0.4, policy=policy, scope=scope)
    kept = F.one_hot(selection.keep_indices, 120).float()
    coarse = selection.merge if selection.merge is not None else kept[:, :0]
    torch.testing.assert_close(coarse.sum(-1), torch.ones(coarse.shape[:2]))
    rows = torch.cat([kept, coarse], 1)
    frames = (rows @ torch.arange(4.0).repeat_interleave(30)).round()
    rows = rows.gather(1, frames.argsort(dim=1, stable=True)[..., None].expand(-1, -1, 120))
    torch.testing.assert_close(selection.apply(features), rows @ features)


@every_policy
@every_scope
def test_a_clip_is_pruned_the_same_alone_and_in_a_batch(policy, scope):
    features, saliency = draw(3, 4, 30, 8), peaked(3, 4, 30)
    together, _ = prune_patches(features, saliency, (5, 6), 0.3, policy, scope)
    for index in range(3):
        alone, _ = prune_patches(features[index, None], saliency[index, None], (5, 6), 0.3, policy, scope)
        torch.testing.assert_close(together[index], alone[0])


@every_policy
@every_scope
@pytest.mark.parametrize("num_prefix_tokens", [1, 3])
def test_prefix_tokens_stay_in_front_of_their_frame(policy, scope, num_prefix_tokens):
    features, saliency = draw(2, 4, num_prefix_tokens + 30, 8), peaked(2, 4, 30)
    kept, selection = prune_patches(features, saliency, (5, 6), 0.3, policy, scope, num_prefix_tokens)
    bare, _ = prune_patches(features[:, :, num_prefix_tokens:], saliency, (5, 6), 0.3, policy, scope)
    kept = kept.reshape(2, -1, 8)
    bare = bare.reshape(2, -1, 8)
    for clip in range(2):
        expected = []
        for frame, tokens in enumerate(bare[clip].split(selection.counts[clip].tolist())):
            expected += [features[clip, frame, :num_prefix_tokens], tokens]
        assert torch.equal(kept[clip], torch.cat(expected))


@every_policy
@every_scope
def test_gradients_reach_the_tokens_that_are_used(policy, scope):
    features = draw(2, 4, 30, 8).requires_grad_()
    kept, selection = prune_patches(features, peaked(2, 4, 30), (5, 6), 0.3, policy, scope)
    kept.sum().backward()
    used = torch.zeros(2, 120).scatter_(1, selection.keep_indices, 1.0)
    if selection.merge is not None:
        used += selection.merge.sum(1)
    torch.testing.assert_close(features.grad, used.reshape(2, 4, 30, 1).expand(-1, -1, -1, 8))


@every_policy
def test_inference_does_not_spoil_later_training(policy):
    # Sizes no other test uses, so that what is cached is made here, under inference mode.
    with torch.inference_mode():
        select_patches(peaked(1, 2, 77), (7, 11), 0.37, policy=policy).apply(draw(1, 154, 4))
    features = draw(1, 154, 4).requires_grad_()
    select_patches(peaked(1, 2, 77), (7, 11), 0.37, policy=policy).apply(features).sum().backward()
    assert bool(features.grad.any())


@every_policy
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_select_patches_fails_on_unusable_saliency(policy, value):
    saliency = peaked(2, 3, 30)
    saliency[1, 2, 7] = value
    with pytest.raises(ValueError, match="saliency must be finite"):
        select_patches(saliency, (5, 6), 0.5, policy=policy)


def test_select_patches_fails_naming_what_is_allowed():
    saliency = peaked(2, 3, 30)
    with pytest.raises(ValueError, match="did you mean 'foveate'"):
        select_patches(saliency, (5, 6), 0.5, policy="fovate")
    with pytest.raises(ValueError, match="unknown scope 'video', allowed: frame, clip"):
        select_patches(saliency, (5, 6), 0.5, scope="video")
    with pytest.raises(ValueError, match=r"must be \(B, F, 25\) for grid \(5, 5\), got \(2, 3, 30\)"):
        select_patches(saliency, (5, 5), 0.5)
    with pytest.raises(ValueError, match="keep_ratio must be"):
        select_patches(saliency, (5, 6), 0.0)
    with pytest.raises(ValueError, match="num_keep must be from 1 to 30, got 31"):
        select_patches(saliency, (5, 6), num_keep=31)
    with pytest.raises(ValueError, match="give keep_ratio or num_keep"):
        select_patches(saliency, (5, 6), 0.5, num_keep=3)
    with pytest.raises(ValueError, match=r"seed must be an int or \(2,\)"):
        select_patches(saliency, (5, 6), 0.5, seed=torch.arange(3))
    with pytest.raises(ValueError, match=r"patch_features must be \(2, 90, D\)"):
        select_patches(saliency, (5, 6), 0.5).apply(draw(2, 89, 4))
    with pytest.raises(ValueError, match=r"patch_features must be \(2, 3, 31, 'D'\)"):
        prune_patches(draw(2, 3, 30, 4), saliency, (5, 6), 0.5, num_prefix_tokens=1)


def test_the_settings_know_every_policy():
    assert tuple(POLICIES) == config.POLICIES


def test_a_new_policy_is_one_entry(monkeypatch):
    def last(request: Request) -> Choice:
        place = torch.arange(request.saliency.shape[-1])
        return Choice((place >= len(place) - request.budgets[..., None]).expand_as(request.saliency))

    monkeypatch.setitem(POLICIES, "last", Policy(last))
    assert select_patches(peaked(1, 2, 9), (3, 3), num_keep=2, policy="last").keep_indices.tolist() == [[7, 8, 16, 17]]
