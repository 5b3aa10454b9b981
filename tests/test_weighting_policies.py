"""What each policy keeps, by hand and by its promise."""

from __future__ import annotations

import pytest
import torch
from random_maps import draw, peaked
from torch.nn import functional as F

from salcap.seeding import content_seeds, noise
from salcap.weighting import prune_patches, select_patches
from salcap.weighting.apportion import bounded_shares
from salcap.weighting.policies import patch_path


def test_top_keeps_the_highest():
    saliency = torch.tensor([[[0.5, 2.0, 0.5, 3.0, 0.5, 0.25], [5.0, 1.0, 1.0, 1.0, 4.0, 4.0]]])
    assert select_patches(saliency, (2, 3), num_keep=3, policy="top").keep_indices[0, 3:].tolist() == [6, 10, 11]
    assert {1, 3} < set(select_patches(saliency, (2, 3), num_keep=3, policy="top").keep_indices[0, :3].tolist())


@pytest.mark.parametrize("policy", ["top", "foveate"])
@pytest.mark.parametrize("num_keep", [8, 49, 98, 147])
def test_equals_are_taken_from_all_over_the_frame(policy, num_keep):
    selection = select_patches(torch.ones(1, 1, 196), (14, 14), num_keep=num_keep, policy=policy)
    kept = torch.zeros(196)
    kept[selection.keep_indices[0]] = 1.0
    quarters = F.avg_pool2d(kept.view(1, 14, 14), 7).flatten()
    assert float(quarters.max() - quarters.min()) < 0.1


def test_foveate_by_hand():
    # Columns of the only band are walked down, up, down, up: 0 4 | 5 1 | 2 6 | 7 3. Kept: 1 and 6.
    saliency = torch.tensor([[[1.0, 9.0, 1.0, 1.0, 1.0, 1.0, 8.0, 1.0]]])
    selection = select_patches(saliency, (2, 4), num_keep=4, policy="foveate")
    assert selection.keep_indices.tolist() == [[1, 6]]
    tokens = selection.apply(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]).reshape(1, 8, 1))
    torch.testing.assert_close(tokens.flatten(), torch.tensor([2.0, 64.0, (1 + 16 + 32) / 3, (4 + 128 + 8) / 3]))


@pytest.mark.parametrize("scope", ["frame", "clip"])
@pytest.mark.parametrize("num_keep", [1, 2, 12, 49, 98, 195])
def test_foveate_puts_every_patch_into_exactly_one_token(scope, num_keep):
    saliency = peaked(2, 3, 196)
    selection = select_patches(saliency, (14, 14), num_keep=num_keep, policy="foveate", scope=scope)
    assert selection.merge is not None
    tokens_of_patch = (
        (selection.merge > 0).sum(1).scatter_add(1, selection.keep_indices, torch.ones_like(selection.keep_indices))
    )
    assert bool((tokens_of_patch == 1).all())
    assert selection.keep_indices.shape[1] == 3 * (num_keep // 2)
    sizes = (selection.merge > 0).sum(-1)
    if scope == "frame":
        assert int(sizes.max() - sizes.min()) <= 1


def test_foveate_keeps_the_most_salient_and_merges_neighbours():
    saliency = torch.ones(1, 1, 196)
    saliency[0, 0, [3 * 14 + 3, 3 * 14 + 4, 4 * 14 + 3, 4 * 14 + 4]] = 9.0
    selection = select_patches(saliency, (14, 14), num_keep=8, policy="foveate")
    assert selection.keep_indices.tolist() == [[45, 46, 59, 60]]
    y, x = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    centres = selection.apply(torch.stack([y.flatten(), x.flatten()], -1)[None])[0, 4:]
    quarters = torch.tensor([[3.0, 3.0], [3.0, 10.0], [10.0, 10.0], [10.0, 3.0]])
    assert float((centres - quarters).abs().max()) < 0.8


def test_patch_path_visits_every_patch_by_steps_to_neighbours():
    for grid in [(14, 14), (5, 9), (1, 7), (7, 1), (30, 40)]:
        for num_stretches in (1, 2, 7, 25, grid[0] * grid[1]):
            path, place = patch_path(grid, num_stretches, torch.device("cpu"))
            assert sorted(path.tolist()) == list(range(grid[0] * grid[1]))
            assert torch.equal(path[place], torch.arange(grid[0] * grid[1]))
            step = (path // grid[1]).diff().abs().maximum((path % grid[1]).diff().abs())
            bands = int((step > 1).sum()) + 1
            assert int(step.max()) <= -(-grid[0] // bands)  # from the end of a band to the top of the next
            assert bands <= max(round(grid[0] / (grid[0] * grid[1] / num_stretches) ** 0.5), 1)


def test_stratified_draws_by_saliency():
    saliency = peaked(1, 1, 30, seed=4)
    selection = select_patches(
        saliency.expand(4000, -1, -1), (5, 6), num_keep=8, policy="stratified", seed=torch.arange(4000)
    )
    frequency = torch.bincount(selection.keep_indices.flatten(), minlength=30) / 4000
    expected = bounded_shares(saliency[0, 0], 8, 0.5 * 8 / 30, 1.0)
    assert float((frequency - expected).abs().max()) < 0.03
    assert float(expected.max()) == 1.0  # both bounds are at work
    assert float(expected.min()) < 0.15


@pytest.mark.parametrize("num_keep", [5, 49, 98, 180])
def test_stratified_leaves_no_area_out(num_keep):
    saliency = torch.full((1, 6, 196), 1e-6)
    saliency[..., 56:140] = 9.0  # the six rows in the middle
    selection = select_patches(saliency, (14, 14), num_keep=num_keep, policy="stratified")
    _, place = patch_path((14, 14), num_keep, torch.device("cpu"))
    for frame, kept in enumerate(selection.keep_indices.reshape(6, num_keep)):
        places = place[kept - 196 * frame].sort().values
        gaps = torch.cat([places, torch.tensor([196])]).diff(prepend=torch.tensor([-1]))
        assert int(gaps.max()) <= 2 * 196 / num_keep + 1
    patch = selection.keep_indices % 196
    salient = int(((patch >= 56) & (patch < 140)).sum())
    assert salient >= 0.9 * 6 * min(num_keep / 2, 84)  # as many as coverage leaves


def test_stratified_shows_different_patches_of_a_still_scene():
    selection = select_patches(torch.ones(1, 4, 196), (14, 14), num_keep=49, policy="stratified")
    assert len(set((selection.keep_indices[0] % 196).tolist())) > 2 * 49


def test_random_does_not_look_at_the_map():
    first, second = (
        select_patches(peaked(2, 3, 30, seed=seed), (5, 6), 0.4, policy="random", scope=scope, seed=7)
        for seed, scope in ((0, "frame"), (1, "clip"))
    )
    assert torch.equal(first.keep_indices, second.keep_indices)
    by_frame = first.keep_indices.reshape(2, 3, 12) % 30
    assert torch.equal(by_frame[0], by_frame[1])
    assert len({tuple(frame) for frame in by_frame[0].tolist()}) == 3
    other = select_patches(peaked(2, 3, 30), (5, 6), 0.4, policy="random", seed=torch.tensor([7, 8]))
    assert torch.equal(other.keep_indices[0], first.keep_indices[0])
    assert not torch.equal(other.keep_indices[1], first.keep_indices[1])


def test_random_is_uniform_and_the_same_on_every_machine():
    selection = select_patches(torch.ones(4000, 1, 30), (5, 6), num_keep=6, policy="random", seed=torch.arange(4000))
    frequency = torch.bincount(selection.keep_indices.flatten(), minlength=30) / 4000
    assert float((frequency - 0.2).abs().max()) < 0.03
    assert noise(torch.tensor([0, 1, -1]), 2).tolist() == [
        [340428713, 598639744],
        [470202861, 856825312],
        [1636666369, 3910237652],
    ]


def test_content_seeds_follow_the_pixels_alone():
    pixels = (draw(3, 3, 17, 23) * 60 + 128).clamp(0, 255).to(torch.uint8)
    seeds = content_seeds(pixels)
    assert torch.equal(content_seeds(pixels[1:2]), seeds[1:2])
    changed = pixels.clone()
    changed[:, 2, 16, 22] += 1
    assert not bool((content_seeds(changed) == seeds).any())
    assert not bool((content_seeds(pixels, seed=1) == seeds).any())
    assert len(set(seeds.tolist())) == 3


@pytest.mark.parametrize("num_keep, cells", [(49, (7, 7)), (98, (7, 14)), (4, (2, 2))])
def test_pool_equals_average_pooling_where_it_tiles(num_keep, cells):
    features = draw(2, 3, 196, 8)
    kept, selection = prune_patches(features, peaked(2, 3, 196), (14, 14), num_keep / 196, "pool")
    assert selection.keep_indices.shape == (2, 0)
    images = features.flatten(0, 1).mT.unflatten(-1, (14, 14))
    expected = F.adaptive_avg_pool2d(images, cells).flatten(-2).mT
    torch.testing.assert_close(kept, expected.unflatten(0, (2, 3)))


@pytest.mark.parametrize(
    "grid, num_keep, num_tokens",
    [
        ((14, 14), 25, 25),
        ((14, 14), 12, 12),
        ((14, 14), 13, 12),
        ((14, 14), 74, 72),
        ((1, 10), 5, 5),
        ((4, 12), 11, 10),
    ],
)
def test_pool_takes_the_largest_well_shaped_grid(grid, num_keep, num_tokens):
    saliency = peaked(1, 1, grid[0] * grid[1])
    assert select_patches(saliency, grid, num_keep=num_keep, policy="pool").num_tokens == num_tokens


# --- one budget for the clip ---


@pytest.mark.parametrize("policy", ["top", "stratified", "foveate"])
def test_frames_of_a_clip_share_by_mass(policy):
    saliency = torch.ones(2, 3, 30)
    saliency[0, 0] *= 3
    saliency[0, 2] *= 0.001
    selection = select_patches(saliency, (5, 6), num_keep=8, policy=policy, scope="clip")
    assert selection.counts.tolist() == [[17, 6, 1], [8, 8, 8]]


def test_a_frame_whose_gaze_is_spread_gets_more_than_one_whose_gaze_is_held():
    saliency = torch.ones(1, 2, 30)
    saliency[0, 1] = 0.0
    saliency[0, 1, :15] = 2.0
    selection = select_patches(saliency, (5, 6), num_keep=12, policy="top", scope="clip")
    assert selection.counts.tolist() == [[16, 8]]


@pytest.mark.parametrize("policy", ["random", "pool"])
def test_controls_share_evenly(policy):
    saliency = peaked(1, 3, 30) * torch.tensor([9.0, 1.0, 1.0])[:, None]
    selection = select_patches(saliency, (5, 6), num_keep=6, policy=policy, scope="clip")
    assert selection.counts.tolist() == [[6, 6, 6]]
