"""The bundled backbones on images with fixations that no training saw."""

from __future__ import annotations

import pytest

from salcap.evaluation.saliency import evaluate_saliency, load_gaze
from salcap.saliency import create_saliency
from salcap.saliency.uva_net import UvaNet


@pytest.fixture(scope="module")
def nss_on_osie(shared):
    items, split = load_gaze("osie", shared / "data" / "saliency" / "osie", "val")

    def nss(name: str) -> float:
        result = evaluate_saliency(create_saliency(name), items[::5], dataset="osie", split=split, max_side=256)
        assert result.num_items == 20
        return result.scores["nss"]

    return nss


def test_the_student_predicts_fixations_and_its_teacher_does_better(nss_on_osie):
    center, spectral, student, teacher = map(nss_on_osie, ("center", "spectral_residual", "uva_net", "effnet_teacher"))
    assert center < spectral < 0.8 * student
    assert student < 0.85 * teacher
    assert student > 2.0
    assert teacher > 2.7


def test_the_student_is_small():
    student = create_saliency("uva_net")
    assert isinstance(student, UvaNet)
    assert sum(parameter.numel() for parameter in student.parameters()) < 0.17e6
    assert student.weights_path.stat().st_size <= 0.68e6
