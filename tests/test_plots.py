"""Plots show what their source holds, and refuse what is no source of theirs."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from typer.testing import CliRunner

from salcap.cli import app
from salcap.pictures.plots import draw_plot

STEPS = [{"stage": 0, "step": 200 * n, "soft": 1.0 / n, "kl": 2.0} for n in range(1, 6)]
LOG = [
    *STEPS,
    {"stage": 0, "methods": "soft+kl", "scores": {"nss": 1.5}},
    {"stage": 1, "step": 200, "soft": 0.1},
    {"stage": 1, "methods": "soft", "scores": {"nss": 1.6}},
]


def write_log(folder: Path, records: list[dict] = LOG) -> Path:
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def texts(path: Path) -> list[str]:
    found = [each.text or "" for each in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]
    assert found
    return found


def curve(path: Path) -> list[tuple[float, float]]:
    """The longest drawn in the plots' blue."""
    paths = re.findall(r'<path d="([^"]+)"[^>]*stroke: #0077bb', path.read_text())
    longest = max(paths, key=len)
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", longest)]


def test_each_loss_and_score_of_a_training_is_drawn_over_its_steps(tmp_path):
    found = draw_plot(write_log(tmp_path), tmp_path / "curves.svg")
    assert {"soft", "kl", "nss", "step"} <= set(texts(found))
    assert "methods" not in texts(found)
    points = curve(found)
    assert len(points) == len(STEPS) + 1
    gaps = [after[0] - before[0] for before, after in itertools.pairwise(points)]
    assert gaps == pytest.approx([gaps[0]] * len(gaps), rel=0.01)  # the second stage goes on where the first ended
    heights = [y for _, y in points]
    assert heights == sorted(heights)  # y of SVG points downwards, and the loss falls
    again = draw_plot(tmp_path / "log.jsonl", tmp_path / "again.svg")
    assert again.read_bytes() == found.read_bytes()


def test_a_png_is_a_picture(tmp_path):
    result = CliRunner().invoke(app, ["plot", str(write_log(tmp_path)), "--output", str(tmp_path / "curves.png")])
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path}/curves.png\n")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 3 * image.height / 2
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10


@pytest.mark.parametrize(
    "source, output, message",
    [
        ("missing", "a.svg", "no file missing: nothing to plot"),
        ("empty", "a.svg", "no file empty/log.jsonl: nothing to plot"),
        ("text.json", "a.svg", "text.json is not the JSON of a training or benchmark"),
        ("other.json", "a.svg", "other.json is not the JSON of a training or benchmark"),
        ("bare.jsonl", "a.svg", "bare.jsonl: its log has no figures to plot"),
        ("log.jsonl", "a.gif", "output must end with .png or .svg, got a.gif"),
        ("log.jsonl", "there.svg", "there.svg exists; give another output or --overwrite"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, monkeypatch, source, output, message):
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path)
    Path("empty").mkdir()
    Path("text.json").write_text("no JSON")
    Path("other.json").write_text("[1, 2]")
    Path("bare.jsonl").write_text('{"step": 1}\n')
    Path("there.svg").write_text("kept")
    result = CliRunner().invoke(app, ["plot", source, "--output", output])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert Path("there.svg").read_text() == "kept"
    assert not Path("a.svg").exists()
