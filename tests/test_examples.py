"""Every example runs to its end and shows what it says it shows."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from unittest import mock

import pytest

from salcap.captioners import CAPTIONER_FAMILIES
from salcap.saliency import registry

FOLDER = Path(__file__).resolve().parents[1] / "scripts" / "examples"

# name -> what its output must match, in this order
EXPECTED = {
    "add_family": r"neutral equals none: passed.*bright square: passed.*LlavaCaptioner: passed, modes bias, none",
    "caption_corpus": r"first run: 3 new of 3, failed: \{'VideoDecodeError': 1\}\nsecond run: 0 new.*\nb.mp4: \w+ \w+",
    "caption_video": r"^\w+ \w+.*visual tokens.*0\.0 to 2\.0 s: \w+.*4\.0 to 6\.0 s: \w+",
    "compare_maps": r"none +784 tokens .*center +196 tokens .*uva_net +196 tokens  -\d",
    "distil_student": r"student: correlation with the teacher 0\.[5-9]",
    "evaluate_own_videos": r"none +bleu_1 0\.\d+.*uva_net foveate 0\.5 +bleu_1 0\.\d+.*random",
    "own_backbone": r"bright: looks first at .*: \w+ \w+.*red: looks first at .*: \w+",
}


def test_all_examples_are_tried() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_example(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    takes_a_folder = "[FOLDER]" in (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [name, *([str(tmp_path)] if takes_a_folder else [])])
    with mock.patch.dict(CAPTIONER_FAMILIES), mock.patch.dict(registry._factories):
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert re.search(EXPECTED[name], capsys.readouterr().out, re.DOTALL)
