"""Generative feature distillation: a conditional VAE learns to make features from attention, and then teaches both."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

RAMP_EPOCHS = 20
_RECONSTRUCTION_TRANSFER = 0.01
_DIVERGENCE = 0.1
_RECONSTRUCTION = 0.5
_ATTENTION = 0.1


class AttentionHead(nn.Module):
    """Which channels matter when: (B, T, C, h, w) features to (B, C, T) attention in 0..1.

    Convolution, GroupNorm, ReLU, interpolation, 1-D convolution over time, linear layer, sigmoid, and a GroupNorm and
    ReLU before the linear layer as in the authors' code. That code stretches time to a fixed length, from which its
    linear layer makes a fixed number of frames; here the interpolation brings a grid of any size to one cell and the
    linear layer maps channels (our interpretation), so that images and clips of any length will do.

    Args:
        channels: C.
        hidden: channels inside; C where it is None.

    Source: Wang et al., AAAI 2024, code aaai-24/Generative-based-KD.
    """

    def __init__(self, channels: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or channels
        self.space = nn.Sequential(nn.Conv2d(channels, hidden, 3, padding=1), _group_norm(hidden), nn.ReLU())
        self.time = nn.Sequential(nn.Conv1d(hidden, hidden, 3, padding=1), _group_norm(hidden), nn.ReLU())
        self.linear = nn.Linear(hidden, channels)

    def forward(self, features: Tensor) -> Tensor:
        cells = _one_cell(self.space(features.flatten(0, 1))).unflatten(0, features.shape[:2])
        return self.linear(self.time(cells.mT).mT).mT.sigmoid()


class ConditionalVae(nn.Module):
    """Models features F given attention a; the latent is C x T like a, its prior N(a, 1).

    Encoder and decoder are small MLPs, one frame at a time, behind a convolution and before a transposed one. Unlike
    the authors' they take any grid, and features of either sign (a last 1x1 convolution without ReLU): our choice.

    Args:
        channels: C.
        hidden: width of the MLPs; C where it is None.
        grid: side of what the transposed convolution makes of one cell, before it is resized to the features' grid.

    Source: Wang et al., AAAI 2024, code aaai-24/Generative-based-KD.
    """

    def __init__(self, channels: int, hidden: int | None = None, grid: int = 7) -> None:
        super().__init__()
        hidden = hidden or channels
        self.convolution = nn.Sequential(nn.Conv2d(channels, hidden, 3, padding=1), _group_norm(hidden), nn.ReLU())
        self.encoder = _mlp(hidden + channels, hidden, 2 * channels)
        self.decoder = _Decoder(channels, hidden, grid)

    def forward(self, features: Tensor, attention: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct through a sampled latent.

        Args:
            features: (B, T, C, h, w).
            attention: (B, C, T).

        Returns:
            The reconstruction (B, T, C, h, w); mean and log-variance of the latent, (B, C, T) each.
        """
        cells = _one_cell(self.convolution(features.flatten(0, 1))).unflatten(0, features.shape[:2])
        mean, log_variance = self.encoder(torch.cat([cells, attention.mT], -1)).mT.chunk(2, 1)
        latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decoder(latent, attention, features.shape[-2:]), mean, log_variance

    def sample(self, attention: Tensor, size: tuple[int, ...], frozen: bool = False) -> Tensor:
        """Features (B, T, C, *size) made of attention (B, C, T) alone, the latent drawn from the prior N(a, 1).

        Args:
            frozen: send gradients into the attention only, not into the decoder's parameters.
        """
        inputs = (attention + torch.randn_like(attention), attention, size)
        if not frozen:
            return self.decoder(*inputs)
        constants = {name: parameter.detach() for name, parameter in self.decoder.named_parameters()}
        return functional_call(self.decoder, constants, inputs)


class GenerativeDistillation(nn.Module):
    """Attention heads and conditional VAEs of student and teacher, trained in two alternating stages.

    Stage 1 (`generative_stage`) trains `generative_parameters`, stage 2 (`student_stage`) the student together with
    `student_parameters`; give each an optimiser of its own. In stage 2 the task loss sees the student's features after
    ``weight_features(features, distillation.student_attention(features))``. Calling the module itself runs stage 1, or
    stage 2 where an epoch is given, for wrappers (DistributedDataParallel) that see no other method.

    Stages, terms and their weights are the paper's. The authors start from a teacher trained with its attention head
    and VAE; here both learn in stage 1 from the teacher's features (our choice), for any teacher to do.

    Args:
        student_channels: C_s.
        teacher_channels: C_t; where it differs, learned 1x1 projections bring the student's reconstruction (trained in
            stage 1) and attention (stage 2) to it.
        hidden: width inside the heads and VAEs; the channels where it is None.
        grid: see `ConditionalVae`.

    Source: Wang et al., AAAI 2024, code aaai-24/Generative-based-KD.
    """

    def __init__(self, student_channels: int, teacher_channels: int, hidden: int | None = None, grid: int = 7) -> None:
        super().__init__()
        self.student_channels = student_channels
        self.teacher_channels = teacher_channels
        self.student_attention = AttentionHead(student_channels, hidden)
        self.teacher_attention = AttentionHead(teacher_channels, hidden)
        self.student_vae = ConditionalVae(student_channels, hidden, grid)
        self.teacher_vae = ConditionalVae(teacher_channels, hidden, grid)
        same = student_channels == teacher_channels
        self.reconstruction_projection = nn.Identity() if same else nn.Linear(student_channels, teacher_channels)
        self.attention_projection = nn.Identity() if same else nn.Linear(student_channels, teacher_channels)

    def generative_parameters(self) -> Iterator[nn.Parameter]:
        """What stage 1 trains: both VAEs, the teacher's attention head, the projection of reconstructions."""
        modules = (self.student_vae, self.teacher_vae, self.teacher_attention, self.reconstruction_projection)
        return chain.from_iterable(module.parameters() for module in modules)

    def student_parameters(self) -> Iterator[nn.Parameter]:
        """What stage 2 trains beside the student: its attention head and the projection of attention."""
        return chain(self.student_attention.parameters(), self.attention_projection.parameters())

    def forward(self, student_features: Tensor, teacher_features: Tensor, epoch: int | None = None) -> Tensor:
        if epoch is None:
            return self.generative_stage(student_features, teacher_features)
        return self.student_stage(student_features, teacher_features, epoch)

    def generative_stage(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """Stage 1: ``L_CVAE(S) + L_CVAE(T) + 0.01 * MSE(F^_S, F^_T)``; gradients reach `generative_parameters` alone.

        Args:
            student_features: (B, T, C_s, h, w).
            teacher_features: (B, T, C_t, H, W) of the same frames; reconstructed there, compared on the student's grid.

        Raises:
            ValueError: shapes that do not match.
        """
        self._check(student_features, teacher_features)
        student_features, teacher_features = student_features.detach(), teacher_features.detach()
        with torch.no_grad():
            student_attention = self.student_attention(student_features)
        teacher_attention = self.teacher_attention(teacher_features)
        student = self.student_vae(student_features, student_attention)
        teacher = self.teacher_vae(teacher_features, teacher_attention)
        projected = self.reconstruction_projection(student[0].movedim(2, -1)).movedim(-1, 2)
        transfer = _mse(projected, _resize(teacher[0].detach(), projected.shape[-2:]))
        return (
            cvae_loss(student_features, student_attention, *student)
            + cvae_loss(teacher_features, teacher_attention, *teacher)
            + _RECONSTRUCTION_TRANSFER * transfer
        )

    def student_stage(self, student_features: Tensor, teacher_features: Tensor, epoch: int) -> Tensor:
        """Stage 2, without the task loss: ``ramp * 0.5 * MSE(CVAE_S(a_S), F_S) + 0.1 * MSE(a_S, a_T)``.

        ``ramp = min(epoch, 20) / 20``. Gradients reach the student's features and `student_parameters`.

        Args:
            student_features: (B, T, C_s, h, w).
            teacher_features: (B, T, C_t, H, W) of the same frames.
            epoch: counted from 1.

        Raises:
            ValueError: shapes that do not match, or a negative epoch.
        """
        self._check(student_features, teacher_features)
        if epoch < 0:
            raise ValueError(f"epoch must be >= 0, got {epoch}")
        attention = self.student_attention(student_features)
        with torch.no_grad():
            teacher_attention = self.teacher_attention(teacher_features)
        made = self.student_vae.sample(attention, student_features.shape[-2:], frozen=True)
        projected = self.attention_projection(attention.mT).mT
        ramp = min(epoch, RAMP_EPOCHS) / RAMP_EPOCHS
        return ramp * _RECONSTRUCTION * _mse(made, student_features) + _ATTENTION * _mse(projected, teacher_attention)

    def _check(self, student_features: Tensor, teacher_features: Tensor) -> None:
        for role, features, channels in (
            ("student", student_features, self.student_channels),
            ("teacher", teacher_features, self.teacher_channels),
        ):
            if features.ndim != 5 or features.shape[2] != channels or 0 in features.shape:
                raise ValueError(f"the {role}'s features must be (B, T, {channels}, h, w), got {tuple(features.shape)}")
        if student_features.shape[:2] != teacher_features.shape[:2]:
            raise ValueError(
                "student and teacher must see the same frames,"
                f" got (B, T) of {tuple(student_features.shape[:2])} and {tuple(teacher_features.shape[:2])}"
            )


def cvae_loss(
    features: Tensor, attention: Tensor, reconstruction: Tensor, mean: Tensor, log_variance: Tensor
) -> Tensor:
    """L_CVAE: ``mean ||F - F^||^2 + 0.1 * KL(N(mu - a, sigma^2) || N(0, 1))``, both means over all elements.

    Args:
        features: (B, T, C, h, w), F.
        attention: (B, C, T), a.
        reconstruction: F^, like F; mean and log-variance: mu and log sigma^2, like a; as `ConditionalVae` returns them.
    """
    shift, log_variance = (mean - attention).float(), log_variance.float()
    divergence = 0.5 * (shift.square() + log_variance.exp() - 1 - log_variance).mean()
    return _mse(reconstruction, features) + _DIVERGENCE * divergence


def weight_features(features: Tensor, attention: Tensor) -> Tensor:
    """``F' = F * a * sum(F) / sum(F * a)``: weighted by attention, with the features' total kept.

    The sums are over each clip (the authors' code: over the batch), so that a clip does not depend on its batch, and
    over absolute values, the same for features behind a ReLU and never a division by nearly 0 for others: our choices.

    Args:
        features: (B, T, C, h, w).
        attention: (B, C, T) from `AttentionHead`.

    Raises:
        ValueError: shapes that do not match.
    """
    if features.ndim != 5 or attention.shape != (features.shape[0], features.shape[2], features.shape[1]):
        raise ValueError(
            "features must be (B, T, C, h, w) and attention (B, C, T),"
            f" got {tuple(features.shape)} and {tuple(attention.shape)}"
        )
    weighted = features * attention.mT[..., None, None]
    total, kept = (values.abs().sum((1, 2, 3, 4), keepdim=True, dtype=torch.float32) for values in (features, weighted))
    return weighted * (total / kept.clamp_min(torch.finfo(torch.float32).tiny)).to(features.dtype)


class _Decoder(nn.Module):
    """Latent and attention to features, a module of its own so that it can be called with other parameters."""

    def __init__(self, channels: int, hidden: int, grid: int) -> None:
        super().__init__()
        self.mlp = _mlp(2 * channels, hidden, hidden)
        self.grow = nn.Sequential(nn.ConvTranspose2d(hidden, hidden, grid), _group_norm(hidden), nn.ReLU())
        self.head = nn.Conv2d(hidden, channels, 1)

    def forward(self, latent: Tensor, attention: Tensor, size: tuple[int, ...]) -> Tensor:
        cells = self.mlp(torch.cat([latent, attention], 1).mT)
        maps = self.head(self.grow(cells.flatten(0, 1)[..., None, None]))
        return _resize(maps.unflatten(0, cells.shape[:2]), size)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def _group_norm(channels: int) -> nn.GroupNorm:
    """Up to 32 groups, as the authors'; at least 4 channels each, or one cell would be all a group has."""
    groups = math.gcd(channels, 32)
    while groups > 1 and channels // groups < 4:
        groups //= 2
    return nn.GroupNorm(groups, channels)


def _one_cell(maps: Tensor) -> Tensor:
    """(N, C, h, w) to (N, C)."""
    return F.interpolate(maps, (1, 1), mode="area").flatten(1)


def _resize(features: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, T, C, h, w) to (B, T, C, *size), in float32 where it resizes."""
    if features.shape[-2:] == size:
        return features
    shrinks = size[0] < features.shape[-2] or size[1] < features.shape[-1]
    resized = F.interpolate(
        features.flatten(0, 1).float(), size, mode="bilinear", align_corners=False, antialias=shrinks
    )
    return resized.unflatten(0, features.shape[:2])


def _mse(first: Tensor, second: Tensor) -> Tensor:
    return F.mse_loss(first.float(), second.float())
