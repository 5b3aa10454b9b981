"""Is one system better than another on the same items, or was it luck? Paired bootstrap (Koehn, EMNLP 2004)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
NOISE = 1e-9  # what a score may differ by for reasons of arithmetic: BLEU adds 1e-15 to counts of nothing
_DRAWS_A_PART = 200


@dataclass(frozen=True)
class Difference:
    """Score of the one minus score of the other.

    Attributes:
        value: on all items.
        low, high: ends of the 95 % interval over the draws; of one item, which tells nothing of others, 0 is one end.
    """

    value: float
    low: float
    high: float

    @property
    def is_significant(self) -> bool:
        """Whether zero lies outside the interval, and not just beside it."""
        return self.low > NOISE or self.high < -NOISE


def paired_bootstrap(
    ours: np.ndarray,
    theirs: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference:
    """Draw the items anew, with repeats, for both systems alike, and see how far the difference moves.

    Args:
        ours, theirs: (N,) scores of the items, or (N, K) statistics that ``score`` turns into a score.
        score: (D, K) means of the statistics over the items of each draw, to (D,) scores; None where the score of a
            set is the mean of its items' scores.

    Raises:
        ValueError: no items, other shapes, or fewer than one draw.
    """
    if ours.shape != theirs.shape or not len(ours) or ours.ndim > 2 or (ours.ndim == 2) != (score is not None):
        raise ValueError(f"expected two (N,), or two (N, K) with a score, got {ours.shape} and {theirs.shape}")
    if draws < 1:
        raise ValueError(f"expected at least one draw, got {draws}")
    systems = [values[:, None] if values.ndim == 1 else values for values in (ours, theirs)]
    of_means = score or (lambda means: means[:, 0])
    rng, found, count = np.random.default_rng(seed), [], len(ours)
    for start in range(0, draws, _DRAWS_A_PART):
        size = min(_DRAWS_A_PART, draws - start)
        shares = rng.multinomial(count, np.full(count, 1 / count), size) / count
        found.append(np.subtract(*(of_means(shares @ values) for values in systems)))
    value = np.subtract(*(of_means(values.mean(0, keepdims=True)) for values in systems))[0]
    low, high = np.quantile(np.concatenate(found), (0.025, 0.975))
    if count == 1:
        low, high = min(low, 0.0), max(high, 0.0)
    return Difference(float(value), float(low), float(high))
