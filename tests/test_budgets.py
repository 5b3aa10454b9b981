"""How many tokens a clip keeps and how its frames share them, alone and in front of captioners."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from random_maps import draw, peaked
from test_captioners import GRID, make_clip, make_map

from salcap.captioners import load_captioner
from salcap.config import POLICIES, Weighting
from salcap.weighting import prune_patches, select_patches
from salcap.weighting.budgets import clip_budget, frame_mass, share_budget

FAMILIES = {**tiny_models.FAMILIES, "mini": tiny_models.mini}


# --- the clip's budget ---


@pytest.mark.parametrize(
    "limits, total",
    [
        ({"keep_ratio": 0.5}, 60),
        ({"keep_ratio": 0.001}, 6),  # never nothing
        ({"num_keep": 7}, 42),
        ({"max_visual_tokens": 126}, 120),  # 6 frames of 1 + 20 tokens: all
        ({"max_visual_tokens": 9999}, 120),
        ({"max_visual_tokens": 125}, 119),
        ({"max_visual_tokens": 12}, 6),
        ({"max_visual_tokens": 12, "num_prefix_tokens": 0}, 12),
        ({"max_visual_tokens": 100, "keep_ratio": 0.5}, 60),
        ({"max_visual_tokens": 50, "keep_ratio": 0.5}, 44),
        ({"keep_ratio": 0.1, "min_keep": 5}, 30),
        ({"keep_ratio": 0.5, "min_keep": 5}, 60),
        ({"keep_ratio": 0.5, "min_keep": 99}, 120),  # a frame has 20
        ({"max_visual_tokens": 40, "keep_ratio": 0.1, "min_keep": 5}, 30),
        ({"max_visual_tokens": 36, "min_keep": 5}, 30),
    ],
)
def test_the_smallest_limit_holds(limits, total):
    assert clip_budget(6, 20, **{"num_prefix_tokens": 1, **limits}) == total


@pytest.mark.parametrize(
    "limits, message",
    [
        ({}, "or max_visual_tokens alone, got keep_ratio=None and num_keep=None"),
        ({"keep_ratio": 0.5, "num_keep": 3, "max_visual_tokens": 50}, "got keep_ratio=0.5 and num_keep=3"),
        ({"max_visual_tokens": 11}, r"at least 12 for 6 frames of 1 patch .* 6 tokens that always stay, got 11"),
        ({"max_visual_tokens": 12, "num_extra_tokens": 1}, r"at least 13 .* 7 tokens that always stay, got 12"),
        ({"max_visual_tokens": 35, "min_keep": 5}, r"at least 36 .* 5 patch tokens each \(min_keep 5\) .* got 35"),
        ({"max_visual_tokens": 125, "min_keep": 99}, r"at least 126 .* 20 patch tokens each \(min_keep 99\)"),
        ({"keep_ratio": 0.5, "min_keep": 0}, "min_keep must be at least 1, got 0"),
    ],
)
def test_a_budget_that_cannot_be_fails(limits, message):
    with pytest.raises(ValueError, match=message):
        clip_budget(6, 20, num_prefix_tokens=1, **limits)


# --- shares ---


@pytest.mark.parametrize("min_keep", [1, 3, 30])
def test_shares_add_up_within_bounds_and_follow_the_mass(min_keep):
    saliency = peaked(16, 5, 30, seed=3) * draw(16, 5, 1, seed=4).exp()
    mass, low = frame_mass(saliency), min(min_keep, 30)
    for total in range(5 * low, 151):
        shares = share_budget(saliency, total, min_keep, "clip")
        assert bool((shares.sum(1) == total).all())
        assert int(shares.min()) >= low
        assert int(shares.max()) <= 30
        for row in (0, 7):  # each clip's own, whatever the batch
            assert torch.equal(share_budget(saliency[row, None], total, min_keep, "clip")[0], shares[row])
        by_mass = shares.gather(1, mass.argsort(dim=1))
        assert bool((by_mass.diff(dim=1) >= 0).all())


def test_equals_share_alike_and_the_rest_goes_to_the_first():
    alike = torch.ones(1, 4, 9)
    assert share_budget(alike, 22, 1, "clip").tolist() == [[6, 6, 5, 5]]
    assert share_budget(alike, 22, 1, "frame").tolist() == [[5, 5, 5, 5]]
    unlike = alike * torch.tensor([4.0, 1.0, 2.0, 1.0])[:, None]
    assert share_budget(unlike, 16, 1, "clip").tolist() == [[8, 2, 4, 2]]
    assert share_budget(unlike, 22, 4, "clip").tolist() == [[9, 4, 5, 4]]
    assert share_budget(unlike, 22, 1, "clip", reads_map=False).tolist() == [[6, 6, 5, 5]]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num_prefix_tokens", [0, 1])
def test_every_policy_keeps_to_the_token(policy, num_prefix_tokens):
    saliency, features = peaked(3, 4, 30), draw(3, 4, num_prefix_tokens + 30, 5)
    options = {"policy": policy, "scope": "clip"}
    for most in range(4 * (2 + num_prefix_tokens), 4 * (30 + num_prefix_tokens)):
        limits = {"max_visual_tokens": most, "min_keep": 2}
        tokens, selection = prune_patches(
            features, saliency, (5, 6), num_prefix_tokens=num_prefix_tokens, **options, **limits
        )
        assert tokens.shape == (3, selection.num_tokens + 4 * num_prefix_tokens, 5)
        assert bool((selection.counts.sum(1) == selection.num_tokens).all())
        assert int(selection.counts.min()) >= 2
        if policy == "pool":  # to a grid that is well shaped
            assert tokens.shape[1] <= most
        else:
            assert tokens.shape[1] == most
    for most in (4 * (30 + num_prefix_tokens), 10**6):
        tokens, selection = prune_patches(
            features, saliency, (5, 6), num_prefix_tokens=num_prefix_tokens, max_visual_tokens=most, **options
        )
        assert selection.is_identity
        assert torch.equal(tokens, features.flatten(1, 2))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("most", [9, 38, 55, 118])
def test_a_clip_shares_the_same_alone_and_in_a_batch(policy, most):
    saliency, features = peaked(3, 4, 30), draw(3, 120, 5)
    saliency[1] = 1.0  # a clip whose frames are alike, among others
    options = {"policy": policy, "scope": "clip", "max_visual_tokens": most}
    together = select_patches(saliency, (5, 6), **options)
    for clip in range(3):
        alone = select_patches(saliency[clip, None], (5, 6), **options)
        assert torch.equal(alone.counts[0], together.counts[clip])
        torch.testing.assert_close(alone.apply(features[clip, None])[0], together.apply(features)[clip])


@pytest.mark.parametrize("most", [13, 41, 61, 99])
def test_foveate_puts_every_patch_into_one_token_under_an_odd_budget(most):
    selection = select_patches(peaked(2, 4, 30), (5, 6), policy="foveate", scope="clip", max_visual_tokens=most)
    assert selection.merge is not None
    once = (selection.merge > 0).sum(1).scatter_add(1, selection.keep_indices, torch.ones_like(selection.keep_indices))
    assert bool((once == 1).all())
    each, left = divmod(most, 4)
    assert selection.keep_indices.shape[1] == 4 * (each // 2) + left - left // 2


# --- in front of captioners ---


@pytest.fixture(scope="module", params=FAMILIES)
def captioner(request):
    tiny = FAMILIES[request.param]()
    return load_captioner(tiny.model, tiny.processor)


@pytest.mark.parametrize("policy", ["top", "foveate", "random"])
def test_visual_tokens_are_what_was_allowed(captioner, policy):
    """Of 3 frames of 16 patches, each with its prefix tokens."""
    clips, maps = [make_clip(seed, num_frames=3) for seed in range(2)], [make_map(seed, 3) for seed in range(2)]
    (plain, _) = captioner.generate(clips, None, Weighting(), max_new_tokens=4)
    prefix = plain.visual_tokens - 3 * 16
    scores = {plain.score}
    for most in (prefix + 6, prefix + 25, prefix + 47):
        weighting = Weighting("prune", policy, max_visual_tokens=most, min_keep=2)
        texts = captioner.generate(clips, maps, weighting, max_new_tokens=4)
        assert [text.visual_tokens for text in texts] == [most, most]
        scores.add(texts[0].score)
        (alone,) = captioner.generate(clips[1:], maps[1:], weighting, max_new_tokens=4)
        assert alone.text == texts[1].text
        assert alone.score == pytest.approx(texts[1].score, abs=1e-4)
    assert len(scores) == 4  # every budget shows the decoder something else
    with pytest.raises(ValueError, match=rf"max_visual_tokens must be at least {prefix + 6} .* got {prefix + 5}"):
        captioner.generate(clips, maps, Weighting("prune", policy, max_visual_tokens=prefix + 5, min_keep=2))


@pytest.mark.parametrize("policy", POLICIES)
def test_clips_that_fit_are_captioned_as_without_bit_for_bit(captioner, policy):
    # GIT takes clips that share a budget one by one, which rounds otherwise than a batch does
    for size, num_beams in ((1, 3), (3, 1), (3, 3)):
        clips, maps = [make_clip(seed, 3) for seed in range(size)], [make_map(seed, 3) for seed in range(size)]
        generation = {"num_beams": num_beams, "max_new_tokens": 4}
        plain = captioner.generate(clips, None, Weighting(), **generation)
        for most in (plain[0].visual_tokens, 10**6):
            fits = captioner.generate(clips, maps, Weighting("prune", policy, max_visual_tokens=most), **generation)
            assert [(t.text, t.score, t.visual_tokens) for t in fits] == [
                (t.text, t.score, t.visual_tokens) for t in plain
            ]
        weighting = Weighting("prune", policy, max_visual_tokens=plain[0].visual_tokens - 20)
        assert all(
            cut.score != other.score
            for cut, other in zip(captioner.generate(clips, maps, weighting, **generation), plain, strict=True)
        )


def test_min_keep_raises_the_keep_ratio(captioner):
    clip, log_density = make_clip(0, num_frames=2), make_map(0, 2)
    assert GRID == (4, 4)
    tokens = [
        captioner.generate([clip], [log_density], weighting, max_new_tokens=2)[0].visual_tokens
        for weighting in (Weighting("prune", keep_ratio=0.125), Weighting("prune", keep_ratio=0.125, min_keep=5))
    ]
    assert tokens[1] - tokens[0] == 2 * (5 - 2)
