"""The public surface: names that exist, and an import that stays light."""

from __future__ import annotations

import subprocess
import sys

import pytest

import salcap

PROMISED = {
    "Caption",
    "Frames",
    "SaliencyCaptioner",
    "create_saliency",
    "list_saliency",
    "read_frames",
    "register_saliency",
    "score_captions",
    "score_saliency",
}
HEAVY = ("accelerate", "av", "gradio", "matplotlib", "onnxruntime", "openvino", "pycocoevalcap", "ray")


def run_python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_all_is_sorted_and_holds_what_is_promised() -> None:
    assert salcap.__all__ == sorted(set(salcap.__all__))
    assert set(salcap.__all__) >= PROMISED


@pytest.mark.parametrize("name", salcap.__all__)
def test_every_public_name_is_there_with_a_docstring(name: str) -> None:
    assert getattr(salcap, name).__doc__
    assert name in dir(salcap)


def test_star_import_gives_all() -> None:
    names: dict[str, object] = {}
    exec("from salcap import *", names)
    assert set(salcap.__all__) <= set(names)


def test_unknown_name_fails() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'SaliencyCaptionr'"):
        salcap.SaliencyCaptionr  # noqa: B018


def test_importing_salcap_is_light() -> None:
    heavy = (*HEAVY, "torchvision", "transformers")
    loaded = run_python(f"import sys, salcap; print(*[name for name in {heavy} if name in sys.modules])")
    assert loaded.split() == []


def test_what_needs_no_model_loads_no_torch() -> None:
    code = "import sys, salcap.doctor, salcap.evaluation.captions, salcap.manifest, salcap.outputs"
    assert run_python(f"{code}; print('torch' in sys.modules)").split() == ["False"]


def test_help_loads_no_model_code() -> None:
    heavy = (*HEAVY, "torch", "torchvision", "transformers")
    code = f"""
import sys
from salcap.cli import main
sys.argv = ["salcap", "--help"]
try:
    main()
finally:
    print("loaded:", *[name for name in {heavy} if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout.splitlines()[-1].split()) == (0, ["loaded:"]), run.stderr
    assert "caption" in run.stdout


def test_importing_salcap_changes_nothing_around_it() -> None:
    code = """
import logging, os, random, sys, warnings
def around():
    loggers = (logging.root.level, list(logging.root.handlers))
    return dict(os.environ), os.getcwd(), loggers, list(warnings.filters), random.getstate(), sys.excepthook, sys.stdout
before = around()
import salcap
assert around() == before
"""
    assert run_python(code) == ""


def test_reading_and_saliency_need_no_transformers() -> None:
    code = "import sys, salcap; salcap.read_frames; salcap.create_saliency('uniform'); salcap.Weighting()"
    loaded = run_python(f"{code}; print(*[name for name in ('torchvision', 'transformers') if name in sys.modules])")
    assert loaded.split() == []
