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
from salcap.pictures.plots import _STAGES, draw_plot

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
        ("log.jsonl", "a.gif", "output a.gif has suffix '.gif', allowed: .png, .svg"),
        ("log.jsonl", "there.svg", "output there.svg exists; name another or pass --overwrite"),
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


SPEEDS = {
    "benchmark": "saliency", "threads": 2, "frame_size": [224, 224],
    "rows": [{"name": "center", "frames_per_second": {"frames_64": 100.5}}],
}  # fmt: skip
STAGES = {
    "benchmark": "captioning", "model": "m", "device": "cpu",
    "rows": [
        {"name": name, "ratio": 1, "ms": {stage: {"p50": 2} for stage in _STAGES}} for name in ("unmodified", "a 0.5")
    ],
}  # fmt: skip


def test_a_benchmark_of_one_line_is_one(tmp_path):
    (tmp_path / "bench.jsonl").write_text(json.dumps(SPEEDS) + "\n")
    assert "frames of 224x224 per second, 2 threads, median" in texts(
        draw_plot(tmp_path / "bench.jsonl", tmp_path / "a.svg")
    )


def test_benchmarks_are_drawn(tmp_path):
    on_gpu = {**SPEEDS, "device": "cuda:0"}
    for found, words in (
        (SPEEDS, "frames of 224x224 per second, 2 threads, median"),
        (on_gpu, "frames of 224x224 per second, cuda:0, median"),
        (STAGES, "a 0.5"),
    ):
        (tmp_path / "found.json").write_text(json.dumps(found))
        assert words in texts(draw_plot(tmp_path / "found.json", tmp_path / "bars.SVG", overwrite=True))


@pytest.mark.parametrize(
    "found, message",
    [
        (b"\x89PNG\r\n\x1a\n\xff", " is not the JSON of a training or benchmark: 'utf-8' codec can't decode"),
        (b"[" * 100_000, " is not the JSON of a training or benchmark"),
        ({"benchmark": "saliency"}, ": expected a list of rows, got None"),
        ({**SPEEDS, "rows": [{"name": 1}]}, ": expected rows with a name, got {'name': 1.0}"),
        ({**SPEEDS, "rows": 2 * SPEEDS["rows"]}, ": expected rows of different names, got center, center"),
        ({**SPEEDS, "rows": [{"name": "a"}]}, ", row a: expected a number for frames_per_second.frames_64, got None"),
        ({**SPEEDS, "rows": [{"name": "a", "frames_per_second": {"frames_64": 0}}]}, ", row a: expected frames_per"),
        ({**SPEEDS, "frame_size": 224}, ": expected frame_size of height and width, got 224.0"),
        ({**SPEEDS, "frame_size": [224, "x"]}, ": expected a number for frame_size, got 'x'"),
        ({**SPEEDS, "threads": None}, ": expected a number for threads, got None"),
        ({**STAGES, "rows": [{"name": "a"}]}, ", row a: expected a number for ms.saliency.p50, got None"),
        ({**STAGES, "rows": [{**STAGES["rows"][0], "ratio": "x"}]}, ", row unmodified: expected a number for ratio"),
        ({**STAGES, "model": None}, ": expected a name for model, got None"),
    ],
)
def test_what_is_amiss_in_a_benchmark_is_told(tmp_path, monkeypatch, found, message):
    monkeypatch.chdir(tmp_path)
    Path("found.json").write_bytes(found if isinstance(found, bytes) else json.dumps(found).encode())
    result = CliRunner().invoke(app, ["plot", "found.json", "--output", "a.png"])
    assert (result.exit_code, result.stderr.startswith(f"salcap: found.json{message}")) == (2, True), result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["found.json"]


@pytest.mark.parametrize(
    "record, message",
    [
        ({"step": None, "loss": 1.0}, "expected a number for step, got None"),
        ({"step": "5", "loss": 1.0}, "expected a number for step, got '5'"),
        ({"step": float("nan"), "loss": 1.0}, "expected a number for step, got nan"),
        ({"step": 10**400, "loss": 1.0}, "expected a number for step, got inf"),
        ({"step": 3, "scores": None}, "expected scores by name, got None"),
    ],
)
def test_what_is_amiss_in_a_log_is_told(tmp_path, record, message):
    write_log(tmp_path, [*LOG, record])
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/log.jsonl, line {len(LOG) + 1}: {message}")):
        draw_plot(tmp_path, tmp_path / "a.svg")


def test_a_loss_may_be_no_number(tmp_path):
    """As that of a training that went astray is."""
    records = [*STEPS, *({"step": step, "soft": value} for step, value in ((6, float("nan")), (7, 10**400)))]
    assert "soft" in texts(draw_plot(write_log(tmp_path, records), tmp_path / "a.svg"))


def test_a_plot_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    output = tmp_path / "a.svg"
    output.write_text("kept")

    def fail(self, path, **options):
        Path(path).write_text("torn")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_plot(write_log(tmp_path), output, overwrite=True)
    assert output.read_text() == "kept"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.svg", "log.jsonl"]
