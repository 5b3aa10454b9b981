"""See-it-all teacher, see-very-little student."""

from __future__ import annotations

from math import log

import pytest
import torch
from random_maps import draw

from salcap.distill.losses import SeeLittleLoss, choose_frames
from salcap.distill.losses.see_little import prediction_loss, representation_loss


@pytest.mark.parametrize("shape", [(2, 6), (2, 3, 6), (2, 3, 2, 6)])
def test_zero_where_encodings_and_predictions_agree(shape):
    encoding, prediction = draw(*shape, seed=1), draw(*shape, seed=2)
    assert float(SeeLittleLoss()(encoding, encoding, prediction, prediction)) == pytest.approx(0, abs=1e-8)


def test_hand_computed():
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    quarter, half = torch.tensor([[0.25, 0.75]] * 2).log(), torch.tensor([[0.5, 0.5]] * 2).log()
    assert float(representation_loss(student, teacher)) == pytest.approx((4 + 25) / 2)
    assert float(prediction_loss(quarter, half)) == pytest.approx(0.5 * log(4 / 3), rel=1e-5)
    loss = SeeLittleLoss(0.1, 2.0)(student, teacher, quarter, half)
    assert float(loss) == pytest.approx(0.1 * 14.5 + 2.0 * 0.5 * log(4 / 3), rel=1e-5)
    assert float(SeeLittleLoss()(student, teacher, quarter, half)) == pytest.approx(
        0.001 * 14.5 + 0.01 * 0.5 * log(4 / 3), rel=1e-5
    )


def test_logits_do_as_well_as_log_probabilities():
    student, teacher = draw(2, 3, 6, seed=1), draw(2, 3, 6, seed=2)
    torch.testing.assert_close(
        prediction_loss(student, teacher), prediction_loss(student.log_softmax(-1), teacher.log_softmax(-1))
    )


def test_padding_is_not_read():
    student, teacher = draw(2, 3, 6, seed=1), draw(2, 3, 6, seed=2)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    kept = prediction_loss(student[mask], teacher[mask])
    student[~mask], teacher[~mask] = torch.nan, torch.nan
    student.requires_grad_()
    loss = prediction_loss(student, teacher, mask)
    torch.testing.assert_close(loss, kept)
    loss.backward()
    assert float(student.grad[~mask].abs().max()) == 0
    assert float(student.grad[mask].abs().min()) > 0


@pytest.mark.parametrize(
    "num_frames, k, expected",
    [
        (12, 4, [1, 4, 7, 10]),  # every third
        (10, 5, [1, 3, 5, 7, 9]),  # every second
        (5, 5, [0, 1, 2, 3, 4]),
        (7, 1, [3]),
        (8, 3, [1, 4, 6]),
    ],
)
def test_choose_frames_spreads_them(num_frames, k, expected):
    assert choose_frames(num_frames, k).tolist() == expected


@pytest.mark.parametrize("k", [6, 10, 15, 20, 30])
def test_choose_frames_takes_every_jth_where_k_divides(k):
    indices = choose_frames(300, k)
    assert indices.dtype == torch.int64
    assert indices.diff().unique().tolist() == [300 // k]


@pytest.mark.parametrize("k", [0, 6])
def test_choose_frames_fails_outside_the_clip(k):
    with pytest.raises(ValueError, match=rf"k must be 1..5, the number of frames, got {k}"):
        choose_frames(5, k)


def test_negative_weights_fail():
    with pytest.raises(ValueError, match="must be >= 0, got -1"):
        SeeLittleLoss(-1)


@pytest.mark.parametrize(
    "student, teacher, mask, message",
    [
        ((2, 3, 6), (2, 3, 5), None, r"student_log_probabilities \(2, 3, 6\)"),
        ((6,), (6,), None, "must be alike"),
        ((2, 3, 6), (2, 3, 6), torch.ones(2, 3), r"mask must be \(2, 3\) bool, got \(2, 3\) torch.float32"),
        ((2, 3, 6), (2, 3, 6), torch.ones(2, dtype=torch.bool), r"mask must be \(2, 3\) bool"),
        ((2, 3, 6), (2, 3, 6), torch.zeros(2, 3, dtype=torch.bool), "no position"),
    ],
)
def test_unusable_predictions_fail(student, teacher, mask, message):
    with pytest.raises(ValueError, match=message):
        SeeLittleLoss()(torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(student), torch.zeros(teacher), mask)


def test_encodings_of_different_shapes_fail():
    with pytest.raises(ValueError, match=r"student_encoding \(2, 4\) and teacher_encoding \(2, 5\)"):
        representation_loss(torch.zeros(2, 4), torch.zeros(2, 5))
