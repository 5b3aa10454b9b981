"""The student sees few frames of what its teacher sees whole."""

from __future__ import annotations

import math

from torch import Tensor

from salcap.distill.data import Batch
from salcap.distill.losses.see_little import SeeLittleLoss
from salcap.distill.methods.base import Context, Method
from salcap.saliency.density import normalise_log_density
from salcap.saliency.streams import StreamModel, Streams


class SeeLittle(Method):
    """See-it-all teacher, see-very-little student; see `SeeLittleLoss`.

    The teacher is a trained network of the student's architecture and reads all frames of a clip; the student reads the
    stage's ``seen_frames``. Encoding: the features before the map, pooled over space and frames. Prediction: where the
    clip as a whole is looked at, the mean of its frames' densities.

    Args:
        teacher: name of a live teacher.
        representation, prediction: weights of the two terms.
    """

    def __init__(
        self,
        context: Context,
        teacher: str,
        representation: float = 0.001,
        prediction: float = 0.01,
        weight: float = 1.0,
    ) -> None:
        super().__init__(context, weight)
        network = context.teachers.get(teacher)
        if not isinstance(network, StreamModel) or network.feature_channels != context.student.feature_channels:
            raise ValueError(f"teacher {teacher!r} must be a trained network of the student's architecture")
        self._teacher = [network]  # in a list, since it is no part of the method: it has nothing to learn or to save
        self.loss = SeeLittleLoss(representation, prediction)

    def forward(self, streams: Streams, batch: Batch, epoch: int) -> Tensor:
        if batch.whole is None:
            raise ValueError("see_little needs clips of which the student sees a part; set moving: 1 and seen_frames")
        whole = batch.whole
        taught = self._teacher[0].streams(whole.pixels, whole.pts_seconds)
        loss: Tensor = self.loss(
            _encoding(streams, len(batch.pixels)),
            _encoding(taught, len(whole.pixels)),
            _clip_log_density(streams, len(batch.pixels)),
            _clip_log_density(taught, len(whole.pixels)),
        )
        return loss


def _encoding(streams: Streams, num_clips: int) -> Tensor:
    """(B, C)"""
    return streams.features[-1].mean((2, 3)).unflatten(0, (num_clips, -1)).mean(1)


def _clip_log_density(streams: Streams, num_clips: int) -> Tensor:
    """(B, h * w)"""
    log_density = normalise_log_density(streams.fused).unflatten(0, (num_clips, -1))
    num_frames = log_density.shape[1]
    return (log_density.logsumexp(1) - math.log(num_frames)).flatten(1)
