"""Saliency backbones on data sets of gaze: as a user runs it, and against the figures that are known."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from salcap.cli import app
from salcap.datasets.fixations import load_fixations
from salcap.datasets.gaze_video import GazeClip
from salcap.evaluation.saliency import evaluate_human, evaluate_saliency, load_gaze
from salcap.saliency import SaliencyModel, create_saliency
from salcap.saliency.metrics import METRICS, score_saliency

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample.mp4"
CORNERS = ((12, 9), (68, 9), (12, 51), (68, 51))  # of 80x60


class Brightness(SaliencyModel):
    """Looks at what is bright, and keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[int, ...], list[float] | None]] = []

    def forward(self, pixels: Tensor, pts_seconds: Tensor | None = None) -> Tensor:
        self.calls.append((tuple(pixels.shape), None if pts_seconds is None else pts_seconds.tolist()))
        return 8 * pixels.mean(1)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Four images of 40x30, original 80x60, each with a bright square in a corner of its own: there people look."""
    folder = tmp_path_factory.mktemp("osie")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    fixations = {}
    for number, (x, y) in enumerate(CORNERS):
        pixels = np.full((30, 40, 3), 60, np.uint8)
        pixels[y // 2 - 3 : y // 2 + 4, x // 2 - 3 : x // 2 + 4] = 250
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        fixations[f"{number}.png"] = [[[*point, 99] for point in rng.normal((x, y), 2, (6, 2))] for _ in range(3)]
    with gzip.open(folder / "fixations.json.gz", "wt") as file:
        json.dump({"original_size": [80, 60], "fixations": fixations}, file)
    return folder


@pytest.fixture
def items(root):
    return load_fixations("osie", root)


@pytest.fixture
def clips() -> list[GazeClip]:
    """The sample video twice, each with 4 viewers, whose gaze goes from left to right, or back."""
    along = np.linspace(40, 280, 60)
    noise = np.random.default_rng(0).normal(0, 4, (4, 1, 60, 2))
    gaze = [(np.stack([x, np.full(60, 120)], -1) + noise).astype(np.float32) for x in (along, along[::-1])]
    return [GazeClip(f"clip_{number}", SAMPLE, 320.0, 240.0, 10.0, each) for number, each in enumerate(gaze)]


def run(*arguments: object):
    return CliRunner().invoke(app, ["evaluate", *(str(a) for a in arguments)])


# --- images ---


def test_scores_are_those_of_score_saliency_at_the_original_size(items):
    model = Brightness()
    result = evaluate_saliency(model, items, dataset="osie")
    assert [shape for shape, _ in model.calls] == [(1, 3, 30, 40)] * 4
    assert list(result.per_item) == ["0.png", "1.png", "2.png", "3.png"]
    item = items[1]
    frame = np.asarray(Image.open(item.path))[None]
    expected = score_saliency(
        model.predict(frame, (60, 80)),
        [item.fixations],
        item.density_map((60, 80)),
        [np.concatenate([other.fixations for other in items if other is not item])],
        create_saliency("center").predict(frame, (60, 80)),
    )
    assert result.per_item["1.png"] == expected
    for name in METRICS:
        values = [scores[name] for scores in result.per_item.values()]
        assert result.scores[name] == pytest.approx(np.mean(values))
        assert result.standard_errors[name] == pytest.approx(np.std(values, ddof=1) / 2)
    assert (result.dataset, result.num_items, result.saliency) == ("osie", 4, "unnamed")


def test_better_backbones_score_better(items):
    scores = {
        name: evaluate_saliency(model, items, dataset="osie").scores
        for name, model in {"good": Brightness(), **{n: create_saliency(n) for n in ("center", "uniform")}}.items()
    }
    assert scores["good"]["nss"] > 2 > 0 == scores["uniform"]["nss"] > scores["center"]["nss"]
    assert scores["good"]["s_auc"] > 0.95
    assert scores["uniform"]["auc_judd"] == scores["uniform"]["s_auc"] == 0.5
    assert scores["center"]["information_gain"] == 0.0 < scores["uniform"]["information_gain"]
    human = evaluate_human(items, dataset="osie").scores
    assert human["nss"] > scores["good"]["nss"]
    assert human["information_gain"] > scores["good"]["information_gain"] > 0


def test_big_originals_are_brought_to_max_side(items):
    whole, small = (evaluate_saliency(Brightness(), items, dataset="osie", max_side=side) for side in (80, 40))
    assert small.max_side == 40
    assert small.scores != whole.scores
    assert small.scores["nss"] == pytest.approx(whole.scores["nss"], rel=0.2)


def test_one_item_alone_has_no_shuffled_auc_and_no_error(items):
    result = evaluate_saliency(Brightness(), items[:1], dataset="osie")
    assert [name for name in METRICS if result.scores[name] is None] == ["s_auc"]
    assert set(result.standard_errors.values()) == {None}


def test_people_are_scored_by_halves_that_do_not_overlap(items):
    """One who looks elsewhere than the others is predicted by nobody, and predicts nobody."""
    strange = [type(item)(**{**vars(item), "subjects": (80 - item.subjects[0], *item.subjects[1:2])}) for item in items]
    for item in strange:
        item.subjects[0][:, 1] -= 20
    assert evaluate_human(items, dataset="osie").scores["nss"] > 2
    assert evaluate_human(strange, dataset="osie").scores["nss"] < 0


def test_evaluation_fails(items):
    with pytest.raises(ValueError, match="no items of osie"):
        evaluate_saliency(Brightness(), [], dataset="osie")
    with pytest.raises(ValueError, match="max_side must be at least 1, got 0"):
        evaluate_saliency(Brightness(), items, dataset="osie", max_side=0)


# --- clips ---


def test_a_clip_is_predicted_as_one_and_scored_frame_by_frame(clips):
    model = Brightness()
    result = evaluate_saliency(model, clips, dataset="causality")
    assert list(result.per_item) == ["clip_0", "clip_1"]
    (shape, times), _ = model.calls
    assert shape == (6, 3, 240, 320)  # every tenth of 60
    assert times == pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5, 5.5], abs=0.05)

    class Follower(SaliencyModel):
        """Knows where the gaze of the first clip is at each time."""

        def forward(self, pixels: Tensor, pts_seconds: Tensor | None = None) -> Tensor:
            assert pts_seconds is not None
            x = 40 + 240 * pts_seconds.to(pixels)[:, None, None] / 5.9
            columns = (torch.arange(320) + 0.5 - x) / 16
            rows = (torch.arange(240)[:, None] + 0.5 - 120) / 16
            return -(columns**2 + rows**2) / 2

    forward, back = evaluate_saliency(Follower(), clips, dataset="causality").per_item.values()
    assert forward["nss"] > 5 > 1 > back["nss"]


# --- data sets ---


def test_load_gaze_takes_the_images_that_no_training_saw(shared):
    folder = shared / "data" / "saliency"
    items, split = load_gaze("osie", folder / "osie")
    assert (len(items), split) == (100, "val")
    assert [len(load_gaze(name, folder / name, "all")[0]) for name in ("osie", "etto", "causality")] == [500, 95, 20]
    assert load_gaze("etto", folder / "etto")[1] == load_gaze("causality", folder / "causality")[1] == "all"


@pytest.mark.parametrize(
    "dataset, split, message",
    [
        ("ossie", None, "allowed: osie, sun500, etto, causality; did you mean 'osie'"),
        ("causality", "val", "unknown split of causality 'val', allowed: all"),
        ("osie", "test", "allowed: train, val, all"),
    ],
)
def test_load_gaze_fails(tmp_path, dataset, split, message):
    with pytest.raises(ValueError, match=message):
        load_gaze(dataset, tmp_path, split)


def test_the_known_figures_of_osie(shared):
    """Center 0.84 and half of the observers 3.60 on 700 images; +-0.2 by the choice of images."""
    items = load_fixations("osie", shared / "data/saliency/osie")[::50]
    center = evaluate_saliency(create_saliency("center"), items, dataset="osie").scores
    assert center["nss"] == pytest.approx(0.84, abs=0.2)
    assert center["s_auc"] == pytest.approx(0.5, abs=0.03)
    assert evaluate_human(items, dataset="osie").scores["nss"] == pytest.approx(3.6, abs=0.35)


def test_gaze_on_real_clips_is_where_things_happen(shared):
    items = load_gaze("causality", shared / "data/saliency/causality")[0][:2]
    looking = evaluate_saliency(create_saliency("spectral_residual"), items, dataset="causality").scores
    assert looking["nss"] > 2 * evaluate_saliency(create_saliency("center"), items, dataset="causality").scores["nss"]


# --- command line ---


def test_command_gives_a_line_for_each_backbone(root, tmp_path):
    out = tmp_path / "rows.json"
    result = run(
        "--task", "saliency", "--dataset", "osie", "--root", root, "--split", "all", "--saliency", "center,uniform",
        "--human", "--limit", 3, "--json", "--output", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["saliency"] for row in rows] == ["center", "uniform", "human"]
    assert all((row["dataset"], row["split"], row["num_items"]) == ("osie", "all", 3) for row in rows)
    assert all(set(row["scores"]) == set(METRICS) and "per_item" not in row for row in rows)
    written = json.loads(out.read_text())
    assert [row["scores"] for row in written] == [row["scores"] for row in rows]
    assert list(written[0]["per_item"]) == ["0.png", "1.png", "2.png"]


def test_command_prints_a_table(root):
    result = run("--task", "saliency", "--dataset", "osie", "--root", root, "--saliency", "uniform")
    assert result.exit_code == 0, result.output
    (row,) = [line for line in result.stdout.splitlines() if "uniform" in line]
    cells = [cell.strip() for cell in row.strip("│ ").split("│")]
    assert cells[:5] == ["uniform", "0.000", "0.500", "0.500", "0.000"]
    assert "osie, split val, 4 items" in result.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--task", "saliency"), "needs --saliency"),
        (("--task", "saliency", "--saliency", "centre"), "did you mean 'center'"),
        (("--task", "saliency", "--saliency", "center", "--split", "test"), "allowed: train, val, all"),
        (("--task", "saliency", "--saliency", "center", "--num-beams", "3"), "--num-beams belongs to --task caption"),
        (("--task", "saliency", "--saliency", "center", "--model", "salcap-mini"), "--model belongs to --task caption"),
        (("--human",), "--human belongs to --task saliency"),
        (("--task", "saliency", "--saliency", "center", "--untrimmed"), "--untrimmed belongs to --task caption"),
        (("--task", "salience"), "unknown task 'salience', allowed: caption, saliency"),
        ((), "unknown dataset 'osie', allowed: flickr8k-val"),
    ],
)
def test_command_fails(root, arguments, message):
    result = run("--dataset", "osie", "--root", root, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_command_fails_on_observers_that_are_pooled(shared):
    root = shared / "data/saliency/etto"
    result = run("--task", "saliency", "--dataset", "etto", "--root", root, "--saliency", "uniform", "--human")
    assert result.exit_code == 2
    assert "two observers or more" in result.stderr
    assert result.stdout == ""


def test_command_overwrites_nothing(root, tmp_path):
    (tmp_path / "rows.json").write_text("kept")
    result = run(
        "--task", "saliency", "--dataset", "osie", "--root", root, "--saliency", "uniform",
        "--output", tmp_path / "rows.json",
    )  # fmt: skip
    assert result.exit_code == 2
    assert (tmp_path / "rows.json").read_text() == "kept"


def test_an_image_that_cannot_be_read_ends_the_command_with_status_1(root, tmp_path):
    folder = tmp_path / "osie"
    (folder / "images").mkdir(parents=True)
    (folder / "fixations.json.gz").write_bytes((root / "fixations.json.gz").read_bytes())
    for number in range(4):
        (folder / "images" / f"{number}.png").write_bytes(b"no image")
    result = run("--task", "saliency", "--dataset", "osie", "--root", folder, "--saliency", "uniform")
    assert result.exit_code == 1
    assert "0.png" in result.stderr
