"""What holds for all five methods: a step lowers the loss, the teacher stays as it is, mixed precision and odd maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from random_maps import draw
from torch import Tensor

from salcap.distill.losses import (
    CoupledLoss,
    FeatureStatisticsLoss,
    GenerativeDistillation,
    SeeLittleLoss,
    collaborative_loss,
    fused_loss,
)


@dataclass
class Case:
    """A loss of tensors that learn and tensors that must not."""

    loss: Callable[[list[Tensor], list[Tensor]], Tensor]
    learners: list[Tensor]
    teachers: list[Tensor]


def leaf(*shape: int, seed: int) -> Tensor:
    return draw(*shape, seed=seed).requires_grad_()


def coupled(distance: str) -> Case:
    criterion, density = CoupledLoss(0.4, distance), draw(3, 9, 8, seed=3).exp()
    labelled = torch.tensor([True, False, True])
    return Case(lambda s, t: criterion(s[0], t[0], density, labelled), [leaf(3, 4, 5, seed=1)], [leaf(3, 6, 7, seed=2)])


def fused(distance: str) -> Case:
    density, labelled = draw(3, 9, 8, seed=3).exp(), torch.tensor([True, False, True])
    return Case(
        lambda s, t: fused_loss(s[0], density, t, labelled, distance),
        [leaf(3, 4, 5, seed=1)],
        [leaf(3, 6, 7, seed=2), leaf(3, 2, 2, seed=5)],
    )


def statistics() -> Case:
    criterion = FeatureStatisticsLoss([3, 5], [4, 5])
    return Case(
        criterion,
        [leaf(2, 3, 4, 4, seed=1), leaf(2, 5, 2, 3, seed=2)],
        [leaf(2, 4, 8, 6, seed=3), leaf(2, 5, 2, 2, seed=4)],
    )


def collaborative(num_models: int) -> Case:
    density = draw(3, 4, 5, seed=9).exp()
    return Case(
        lambda s, _: collaborative_loss(s, density).total, [leaf(3, 4 + i, 5, seed=i) for i in range(num_models)], []
    )


def see_little() -> Case:
    criterion, mask = SeeLittleLoss(), torch.tensor([[True, True, False], [True, False, False]])
    return Case(
        lambda s, t: criterion(s[0], t[0], s[1], t[1], mask),
        [leaf(2, 4, seed=1), leaf(2, 3, 6, seed=2)],
        [leaf(2, 4, seed=3), leaf(2, 3, 6, seed=4)],
    )


def generative_student() -> Case:
    torch.manual_seed(0)
    method = GenerativeDistillation(3, 4, hidden=8, grid=2)
    return Case(
        lambda s, t: method.student_stage(s[0], t[0], epoch=7),
        [leaf(2, 2, 3, 4, 5, seed=1), *method.student_parameters()],
        [leaf(2, 2, 4, 3, 2, seed=2), *method.generative_parameters()],
    )


def generative_model() -> Case:
    torch.manual_seed(0)
    method = GenerativeDistillation(3, 4, hidden=8, grid=2)
    student, teacher = leaf(2, 2, 3, 4, 5, seed=1), leaf(2, 2, 4, 3, 2, seed=2)
    return Case(
        lambda _, t: method.generative_stage(t[0], t[1]),
        list(method.generative_parameters()),
        [student, teacher, *method.student_parameters()],
    )


CASES = {
    "coupled-l2": partial(coupled, "l2"),
    "coupled-kld": partial(coupled, "kld"),
    "fused-l2": partial(fused, "l2"),
    "fused-kld": partial(fused, "kld"),
    "statistics": statistics,
    "collaborative-2": partial(collaborative, 2),
    "collaborative-3": partial(collaborative, 3),
    "see_little": see_little,
    "generative-student": generative_student,
    "generative-model": generative_model,
}


def value(case: Case) -> Tensor:
    torch.manual_seed(1)  # the latent's draw
    return case.loss(case.learners, case.teachers)


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]()


def test_a_step_against_the_gradient_lowers_the_loss(case):
    before = value(case)
    assert before.shape == ()
    before.backward()
    norm = torch.stack([learner.grad.norm() for learner in case.learners]).norm()
    with torch.no_grad():
        for learner in case.learners:
            learner -= 1e-2 * learner.grad / norm
    predicted = 1e-2 * norm
    fallen = float((before - value(case)).detach())
    assert 0.3 * predicted < fallen < 1.7 * predicted


def test_every_learner_moves_and_no_teacher_does(case):
    value(case).backward()
    assert all(float(learner.grad.abs().max()) > 0 for learner in case.learners)
    assert all(teacher.grad is None for teacher in case.teachers)


def test_mixed_precision_gives_a_float32_loss_near_the_plain_one(case):
    plain = value(case)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = value(case)
    assert mixed.dtype == torch.float32
    mixed.backward()
    torch.testing.assert_close(mixed, plain, rtol=0.1, atol=0.02)
    assert all(bool(learner.grad.isfinite().all()) for learner in case.learners)


@pytest.mark.parametrize(
    "name", [name for name in CASES if name.split("-")[0] in ("coupled", "fused", "collaborative")]
)
def test_constant_maps_have_a_finite_gradient(name):
    case = CASES[name]()
    with torch.no_grad():
        for maps in (*case.learners, *case.teachers):
            maps.zero_()
    value(case).backward()
    assert all(bool(learner.grad.isfinite().all()) for learner in case.learners)
    assert all(float(learner.grad.abs().max()) > 0 for learner in case.learners)


@pytest.mark.parametrize("name", ["coupled-l2", "coupled-kld", "fused-l2", "fused-kld", "collaborative-3"])
def test_impossible_pixels_have_a_finite_gradient(name):
    case = CASES[name]()
    with torch.no_grad():
        for maps in (*case.learners, *case.teachers):
            maps[:, 0] = -torch.inf
    loss = value(case)
    loss.backward()
    assert bool(loss.isfinite())
    assert all(bool(learner.grad.isfinite().all()) for learner in case.learners)
