"""What GitHub reads matches the project: workflow, forms, citation."""

from __future__ import annotations

import re

import pytest
import yaml
from video_factory import ROOT

import salcap

FORMS = [path for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"]


def test_the_workflow_runs_what_ci_runs_on_the_oldest_python_and_a_new_one() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert commands["test"][-1] == "bash .ci/run"
    assert commands["build"] == ["bash scripts/check_release.sh ${{ matrix.versions }}"]
    (oldest,) = re.findall(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert jobs["test"]["strategy"]["matrix"]["python"][0] == oldest
    assert {row["versions"] for row in jobs["build"]["strategy"]["matrix"]["include"]} == {"lowest", "highest"}


def test_every_file_that_the_guides_name_is_there() -> None:
    for guide in ("CONTRIBUTING.md", "PULL_REQUEST_TEMPLATE.md"):
        text = (ROOT / ".github" / guide).read_text(encoding="utf-8")
        for name in re.findall(r"(?:scripts|tests|salcap|\.github|\.ci)/[\w./]+", text):
            assert (ROOT / name).exists(), f"{guide}: {name}"


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_has_what_github_asks_of_it(path) -> None:
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids)) > 0
    assert all(field["type"] in ("input", "textarea") and field["attributes"]["label"] for field in form["body"])


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (salcap.__version__, "Apache-2.0")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
