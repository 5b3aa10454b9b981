"""See it all, see very little: a student that reads a few frames learns from the same model reading all of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from salcap.distill.losses.densities import kl_divergence
from salcap.sampling import uniform_indices


class SeeLittleLoss(nn.Module):
    """``representation * ||E_T - E_S||^2 + prediction * KL(p_T || p_S)``, to be added to the student's loss on labels.

    The teacher read all frames, the student those of `choose_frames`. Encodings: a saliency clip's features pooled over
    time, a captioner's pooled visual tokens. Predictions: a clip's density flattened, a caption's token distribution.
    Zero where both agree; no gradient reaches the teacher.

    The two terms are the paper's; the weights are a re-implementer's, who found that the plain sum fails to train. The
    direction of the KL and the means over samples and positions are our interpretation.

    Args:
        representation: weight of the encodings' distance.
        prediction: weight of the predictions' divergence.

    Raises:
        ValueError: a negative weight.

    Source: Bhardwaj et al., CVPR 2019, arXiv 1902.10640.
    """

    def __init__(self, representation: float = 0.001, prediction: float = 0.01) -> None:
        super().__init__()
        if min(representation, prediction) < 0:
            raise ValueError(f"the weights must be >= 0, got {representation} and {prediction}")
        self.representation = representation
        self.prediction = prediction

    def forward(
        self,
        student_encoding: Tensor,
        teacher_encoding: Tensor,
        student_log_probabilities: Tensor,
        teacher_log_probabilities: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Scalar.

        Args:
            student_encoding: (B, ..., D).
            teacher_encoding: like the student's.
            student_log_probabilities: (B, ..., K), a density's pixels or a vocabulary last; logits will do.
            teacher_log_probabilities: like the student's.
            mask: the predictions' shape without K, bool; positions where it is False (padding) are not read.

        Raises:
            ValueError: shapes that do not match, or a mask that leaves nothing.
        """
        representation = representation_loss(student_encoding, teacher_encoding)
        prediction = prediction_loss(student_log_probabilities, teacher_log_probabilities, mask)
        return self.representation * representation + self.prediction * prediction


def representation_loss(student_encoding: Tensor, teacher_encoding: Tensor) -> Tensor:
    """L_rep: the squared Euclidean distance over the last dimension; two (B, ..., D) to the mean over the others."""
    _check_alike("encoding", student_encoding, teacher_encoding)
    return (student_encoding.float() - teacher_encoding.detach().float()).square().sum(-1).mean()


def prediction_loss(
    student_log_probabilities: Tensor, teacher_log_probabilities: Tensor, mask: Tensor | None = None
) -> Tensor:
    """L_pred: KL(teacher || student) over the last dimension; two (B, ..., K) to the mean over the mask."""
    _check_alike("log_probabilities", student_log_probabilities, teacher_log_probabilities)
    student, teacher = student_log_probabilities, teacher_log_probabilities.detach()
    if mask is not None:
        if mask.shape != student.shape[:-1] or mask.dtype != torch.bool:
            raise ValueError(f"mask must be {tuple(student.shape[:-1])} bool, got {tuple(mask.shape)} {mask.dtype}")
        if not bool(mask.any()):
            raise ValueError("mask leaves no position to compare")
        student, teacher = student[mask], teacher[mask]  # what stands in padding may be NaN
    return kl_divergence(teacher.float().log_softmax(-1), student.float().log_softmax(-1)).mean()


def choose_frames(num_frames: int, k: int) -> Tensor:
    """The student's k of the teacher's ``num_frames`` frames: (k,) int64 rising indices, spread uniformly.

    The middle ones of k equal parts, as `salcap.sampling` takes them from a video; every j-th frame (from j // 2 on)
    where ``num_frames`` is j * k.

    Raises:
        ValueError: k below 1 or above ``num_frames``.
    """
    if not 1 <= k <= num_frames:
        raise ValueError(f"k must be 1..{num_frames}, the number of frames, got {k}")
    return uniform_indices(torch.arange(num_frames, dtype=torch.float64), k)


def _check_alike(name: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape or student.ndim < 2 or 0 in student.shape:
        raise ValueError(
            f"student_{name} {tuple(student.shape)} and teacher_{name} {tuple(teacher.shape)}"
            " must be alike, (B, ..., D) with at least one value"
        )
