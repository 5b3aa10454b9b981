"""The soft modes: every patch stays, the salient ones count for more."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST_SALIENCY = 1e-4  # below it log-saliency is all rounding; also keeps the bias finite at zero
_MOST_BIAS = 1e4  # finite in float16


def scale_patches(
    patch_features: Tensor, saliency: Tensor, strength: float | Tensor = 0.5, num_prefix_tokens: int = 0
) -> Tensor:
    """Fade the less salient patches into their frame's mean patch: ``x + (1 - w) * (mean - x)``.

    The weight is ``w = min(1, saliency ** strength)``: patches of average saliency and above stay as they are, so a
    constant map or strength 0 gives back the features bit for bit.

    Args:
        patch_features: (..., P + N, D), each frame on its own.
        saliency: (..., N) from `relative_saliency`.
        strength: 0 does nothing, 1 weights by saliency itself; a tensor where it is learned.
        num_prefix_tokens: P leading tokens that are left alone and out of the mean.

    Raises:
        ValueError: shapes that do not match, a negative strength, or saliency that is negative or not finite.
    """
    check_saliency(saliency)
    _check_strength(strength)
    if patch_features.shape[:-1] != (*saliency.shape[:-1], saliency.shape[-1] + num_prefix_tokens):
        raise ValueError(
            f"patch_features {tuple(patch_features.shape)} must be saliency {tuple(saliency.shape)} with"
            f" {num_prefix_tokens} prefix tokens more and a width"
        )
    prefix, patches = patch_features[..., :num_prefix_tokens, :], patch_features[..., num_prefix_tokens:, :]
    fade = (1.0 - saliency.float().pow(strength).clamp_max(1.0)).to(patches.dtype)[..., None]
    patches = torch.lerp(patches, patches.mean(-2, keepdim=True), fade)
    return torch.cat([prefix, patches], -2) if num_prefix_tokens else patches


def attention_bias(saliency: Tensor, strength: float | Tensor = 0.5, num_prefix_tokens: int = 0) -> Tensor:
    """What to add to the attention scores of the visual keys: ``strength * log(saliency)``.

    After the softmax each key's weight is multiplied by ``saliency ** strength``. Zero for a constant map, for
    strength 0 and for prefix tokens; always finite, also in float16.

    Args:
        saliency: (..., N) from `relative_saliency`.

    Returns:
        (..., P + N) float32.

    Raises:
        ValueError: a negative strength, or saliency that is negative or not finite.
    """
    check_saliency(saliency)
    _check_strength(strength)
    bias = (strength * saliency.float().clamp_min(_LEAST_SALIENCY).log()).clamp(-_MOST_BIAS, _MOST_BIAS)
    return torch.nn.functional.pad(bias, (num_prefix_tokens, 0))


def check_saliency(saliency: Tensor) -> None:
    """Raise a ValueError unless saliency is finite, not below 0, and of one patch at least."""
    if saliency.numel() == 0:
        raise ValueError(f"saliency must hold at least one patch, got {tuple(saliency.shape)}")
    lowest, highest = (float(value) for value in torch.aminmax(saliency))  # both are NaN where one value is
    if not (lowest >= 0.0 and highest < float("inf")):
        raise ValueError(f"saliency must be finite and >= 0, got values from {lowest} to {highest}")


def _check_strength(strength: float | Tensor) -> None:
    value = float(strength.detach() if isinstance(strength, Tensor) else strength)
    if not 0.0 <= value < float("inf"):
        raise ValueError(f"strength must be finite and >= 0, got {value}")
