"""CIDEr-D as a reward while training: document frequencies are counted once, over the training captions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

_ORDERS = 4
_SIGMA = 6.0


class CiderReward:
    """CIDEr-D (Vedantam et al., CVPR 2015, section 3 and appendix) of sampled captions.

    Args:
        references: for each training image its cleaned captions.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        counts = [[_ngrams(caption) for caption in captions] for captions in references]
        frequency: Counter[tuple[str, ...]] = Counter()
        for captions in counts:
            frequency.update({gram for caption in captions for gram in caption})
        log_images = math.log(max(len(references), 2))
        self._idf = {gram: log_images - math.log(count) for gram, count in frequency.items()}
        self._unseen = log_images
        self._references = [[self._vectors(caption) for caption in captions] for captions in counts]

    def __call__(self, image: int, candidate: str) -> float:
        """Score one caption against training image number ``image``; 0 to 10."""
        vectors, norms, length = self._vectors(_ngrams(candidate))
        total = 0.0
        for reference, reference_norms, reference_length in self._references[image]:
            penalty = math.exp(-((length - reference_length) ** 2) / (2 * _SIGMA**2))
            for order in range(_ORDERS):
                scale = norms[order] * reference_norms[order]
                if scale:
                    theirs = reference[order]
                    product = sum(min(w, theirs[g]) * theirs[g] for g, w in vectors[order].items() if g in theirs)
                    total += penalty * product / scale
        return 10.0 * total / (_ORDERS * len(self._references[image]))

    def _vectors(self, counts: Counter[tuple[str, ...]]) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(_ORDERS)]
        length = 0
        for gram, count in counts.items():
            vectors[len(gram) - 1][gram] = count * self._idf.get(gram, self._unseen)
            length += count if len(gram) == 2 else 0
        return vectors, [math.sqrt(sum(w * w for w in vector.values())) for vector in vectors], length


def _ngrams(caption: str) -> Counter[tuple[str, ...]]:
    # the end of the sentence counts as a word, else unfinished captions are rewarded
    words = [*caption.split(), "</s>"]
    return Counter(
        tuple(words[i : i + order]) for order in range(1, _ORDERS + 1) for i in range(len(words) - order + 1)
    )
