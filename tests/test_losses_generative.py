"""Generative feature distillation: attention heads, conditional VAEs, two alternating stages."""

from __future__ import annotations

import pytest
import torch
from random_maps import draw
from torch import Tensor, nn

from salcap.distill.losses import (
    AttentionHead,
    ConditionalVae,
    GenerativeDistillation,
    cvae_loss,
    weight_features,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("num_frames, size", [(1, (1, 1)), (3, (4, 5)), (5, (2, 7))])
@pytest.mark.parametrize("channels, hidden", [(8, None), (6, 12)])
def test_attention_is_channels_by_frames_in_0_to_1(num_frames, size, channels, hidden):
    head = AttentionHead(channels, hidden)
    attention = head(draw(2, num_frames, channels, *size))
    assert attention.shape == (2, channels, num_frames)
    assert bool(((attention > 0) & (attention < 1)).all())
    assert attention.std(0).min().item() > 0  # follows the features


def test_attention_sees_the_neighbouring_frames_but_no_other_clip():
    head, features = AttentionHead(8), draw(2, 3, 8, 4, 4)
    before = head(features)
    features[0, 0] += draw(8, 4, 4, seed=1)
    after = head(features)
    assert not torch.allclose(after[0, :, 1], before[0, :, 1])
    torch.testing.assert_close(after[1], before[1])


@pytest.mark.parametrize("size", [(1, 1), (4, 5), (9, 3)])
def test_the_vae_makes_features_of_any_grid(size):
    vae = ConditionalVae(6, grid=3)
    features, attention = draw(2, 3, 6, *size), draw(2, 6, 3).sigmoid()
    made, mean, log_variance = vae(features, attention)
    assert made.shape == features.shape
    assert mean.shape == log_variance.shape == attention.shape
    assert vae.sample(attention, size).shape == features.shape
    assert not torch.equal(mean, log_variance)


class Echo(nn.Module):
    """A decoder that shows the latent."""

    def forward(self, latent: Tensor, attention: Tensor, size: tuple[int, ...]) -> Tensor:
        return latent


@pytest.mark.parametrize("frozen", [False, True])
def test_samples_are_drawn_from_the_prior_around_the_attention(frozen):
    vae = ConditionalVae(4)
    vae.decoder = Echo()
    attention = torch.tensor([0.1, 0.4, 0.6, 0.9])[None, :, None].expand(1, 4, 20_000)
    latent = vae.sample(attention, (2, 2), frozen)[0]
    torch.testing.assert_close(latent.mean(1), attention[0, :, 0], atol=0.03, rtol=0)
    torch.testing.assert_close(latent.std(1), torch.ones(4), atol=0.03, rtol=0)


def test_the_latent_of_a_reconstruction_has_the_encoders_mean_and_deviation():
    vae = ConditionalVae(4)
    vae.decoder = Echo()
    last = vae.encoder[-1]
    nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([3.0] * 4 + [4.0] * 4).log()  # mean ln 3, variance 4
    latent, mean, log_variance = vae(draw(1, 10_000, 4, 1, 1), torch.zeros(1, 4, 10_000))
    torch.testing.assert_close(mean.exp(), torch.full_like(mean, 3.0))
    torch.testing.assert_close(log_variance.exp(), torch.full_like(mean, 4.0))
    torch.testing.assert_close(latent[0].mean(1), mean[0, :, 0], atol=0.1, rtol=0)
    torch.testing.assert_close(latent[0].std(1), torch.full((4,), 2.0), atol=0.1, rtol=0)


def test_a_frozen_sample_has_the_values_of_the_other():
    vae, attention = ConditionalVae(4), draw(2, 4, 3).sigmoid()
    torch.manual_seed(3)
    made = vae.sample(attention, (5, 4))
    torch.manual_seed(3)
    torch.testing.assert_close(vae.sample(attention, (5, 4), frozen=True), made)


def test_cvae_loss_zero_at_its_optimum_and_hand_computed():
    features, attention = draw(2, 3, 4, 5, 5), draw(2, 4, 3).sigmoid()
    zero = torch.zeros_like(attention)
    assert cvae_loss(features, attention, features, attention, zero).item() == 0
    # off by 2 everywhere; the mean off by 1 and sigma 2: 4 + 0.1 * 0.5 * (1 + 4 - 1 - ln 4)
    loss = cvae_loss(features, attention, features + 2, attention + 1, zero + torch.tensor(4.0).log())
    assert loss.item() == pytest.approx(4 + 0.05 * (4 - 1.3862944), rel=1e-5)


def test_weighted_features_by_hand_keep_the_total():
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, :, :, None, None]  # two frames of two channels
    attention = torch.tensor([[[0.5, 1.0], [0.25, 0.5]]])  # (1, C, T)
    # 0.5, 0.5, 3, 2 sum to 6, the features to 10
    expected = torch.tensor([[0.5, 0.5], [3.0, 2.0]])[None, :, :, None, None] * 10 / 6
    torch.testing.assert_close(weight_features(features, attention), expected)


def test_weighted_features_do_not_depend_on_constant_attention_or_on_the_batch():
    features, attention = draw(2, 3, 4, 5, 5), draw(2, 4, 3, seed=1).sigmoid()
    torch.testing.assert_close(weight_features(features, torch.full((2, 4, 3), 0.2)), features)
    torch.testing.assert_close(weight_features(features, attention)[:1], weight_features(features[:1], attention[:1]))


def test_weighted_features_stay_tame_where_signs_cancel_and_where_all_is_dead():
    features, attention = draw(1, 2, 4, 5, 5), draw(1, 4, 2, seed=1).sigmoid()
    features[:, :, 1::2] = -features[:, :, ::2]
    weighted = weight_features(features, attention)
    torch.testing.assert_close(weighted.abs().sum(), features.abs().sum())
    dead = torch.zeros(1, 2, 4, 5, 5, requires_grad=True)
    weight_features(dead, attention).sum().backward()
    assert bool(dead.grad.isfinite().all())


@pytest.mark.parametrize("student_channels, teacher_channels", [(4, 4), (4, 6)])
def test_each_stage_trains_its_own_parameters_all_of_them(student_channels, teacher_channels):
    method = GenerativeDistillation(student_channels, teacher_channels, hidden=8, grid=2)
    student = draw(2, 3, student_channels, 4, 5, seed=1).requires_grad_()
    teacher = draw(2, 3, teacher_channels, 6, 6, seed=2).requires_grad_()
    generative, own = list(method.generative_parameters()), list(method.student_parameters())
    assert {*map(id, generative), *map(id, own)} == set(map(id, method.parameters()))
    assert len(generative) + len(own) == len(list(method.parameters()))

    method(student, teacher).backward()
    assert all(parameter.grad is not None for parameter in generative)
    assert all(unused.grad is None for unused in (student, teacher, *own))

    method.zero_grad()
    method(student, teacher, epoch=1).backward()
    assert all(used.grad is not None for used in (student, *own))
    assert all(unused.grad is None for unused in (teacher, *generative))


def test_stage_2_of_twins_has_the_reconstruction_alone_and_ramps_it_up():
    method = GenerativeDistillation(4, 4, hidden=8, grid=2)
    method.teacher_attention.load_state_dict(method.student_attention.state_dict())
    features = draw(2, 3, 4, 5, 5)

    def loss(epoch: int) -> float:
        torch.manual_seed(5)
        return method.student_stage(features, features, epoch).item()

    torch.manual_seed(5)
    made = method.student_vae.sample(method.student_attention(features), (5, 5))
    assert loss(0) == 0
    assert loss(20) == pytest.approx(0.5 * (made - features).square().mean().item(), rel=1e-5)
    assert loss(5) == pytest.approx(loss(20) / 4, rel=1e-5)
    assert loss(40) == loss(20)


def test_stage_2_at_epoch_0_is_the_attention_distillation():
    method = GenerativeDistillation(4, 4, hidden=8, grid=2)
    student, teacher = draw(2, 3, 4, 5, 5, seed=1), draw(2, 3, 4, 6, 6, seed=2)
    difference = method.student_attention(student) - method.teacher_attention(teacher)
    loss = method.student_stage(student, teacher, 0).item()
    assert loss == pytest.approx(0.1 * difference.square().mean().item(), rel=1e-5)


def test_stage_1_is_the_sum_of_its_terms():
    method = GenerativeDistillation(4, 4, hidden=8, grid=2)
    student, teacher = draw(2, 3, 4, 5, 5, seed=1), draw(2, 3, 4, 5, 5, seed=2)
    torch.manual_seed(5)
    loss = method.generative_stage(student, teacher).item()
    torch.manual_seed(5)  # the student's latent is drawn first
    attentions = method.student_attention(student), method.teacher_attention(teacher)
    made = method.student_vae(student, attentions[0]), method.teacher_vae(teacher, attentions[1])
    expected = sum(
        cvae_loss(features, attention, *outputs).item()
        for features, attention, outputs in zip((student, teacher), attentions, made, strict=True)
    )
    expected += 0.01 * (made[0][0] - made[1][0]).square().mean().item()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_the_teachers_vae_does_not_follow_the_student():
    method = GenerativeDistillation(4, 4, hidden=8, grid=2)
    gradients = []
    for level in (0.0, 100.0):
        nn.init.constant_(method.student_vae.decoder.head.bias, level)  # what the student reconstructs
        method.zero_grad()
        torch.manual_seed(5)
        method.generative_stage(draw(2, 3, 4, 5, 5, seed=1), draw(2, 3, 4, 5, 5)).backward()
        gradients.append([parameter.grad.clone() for parameter in method.teacher_vae.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_stage_1_learns_to_reconstruct():
    method = GenerativeDistillation(4, 4, hidden=16, grid=4)
    levels = draw(2, 2, 4, 1, 1, seed=1)
    features = (levels + 0.1 * draw(2, 2, 4, 4, 4, seed=2)).repeat(2, 1, 1, 1, 1)
    optimiser = torch.optim.Adam(method.generative_parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = method.generative_stage(features, features)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


@pytest.mark.parametrize(
    "student, teacher, epoch, message",
    [
        ((2, 4, 5, 5), (2, 3, 6, 5, 5), None, r"student's features must be \(B, T, 4, h, w\), got \(2, 4, 5, 5\)"),
        ((2, 3, 6, 5, 5), (2, 3, 6, 5, 5), 1, r"student's features must be \(B, T, 4, h, w\)"),
        ((2, 3, 4, 5, 5), (2, 3, 4, 5, 5), 1, r"teacher's features must be \(B, T, 6, h, w\)"),
        ((2, 3, 4, 5, 5), (2, 2, 6, 5, 5), None, "the same frames"),
        ((2, 3, 4, 5, 5), (2, 3, 6, 5, 5), -1, "epoch must be >= 0, got -1"),
    ],
)
def test_unusable_inputs_fail(student, teacher, epoch, message):
    method = GenerativeDistillation(4, 6, hidden=8, grid=2)
    with pytest.raises(ValueError, match=message):
        method(torch.zeros(student), torch.zeros(teacher), epoch)


def test_weight_features_fails_on_attention_of_another_shape():
    with pytest.raises(ValueError, match=r"attention \(B, C, T\), got \(2, 3, 4, 5, 5\) and \(2, 3, 4\)"):
        weight_features(torch.zeros(2, 3, 4, 5, 5), torch.zeros(2, 3, 4))
