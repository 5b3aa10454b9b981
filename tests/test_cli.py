"""The command line, run as a user would, on a tiny model in a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
from rich.console import Console
from test_captioner_loading import save
from typer.testing import CliRunner

from salcap.cli import app
from salcap.cli.console import progress_bar

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample.mp4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return Path(save(tiny_models.mini(), tmp_path_factory.mktemp("model")))


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_caption_writes_records(folder, tmp_path):
    out = tmp_path / "out.jsonl"
    result = run(
        "caption", SAMPLE, "--model", folder, "--num-frames", 3, "--keep-ratio", 0.5, "--policy", "stratified",
        "--start", 0.5, "--end", 2, "--num-beams", 2, "--json", "--output", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record == json.loads(out.read_text())
    assert record["path"] == str(SAMPLE)
    assert (record["mode"], record["policy"], record["keep_ratio"]) == ("prune", "stratified", 0.5)
    assert (record["start_seconds"], record["end_seconds"], record["visual_tokens"]) == (0.5, 2.0, 24)
    expected = "caption model revision saliency frame_pts_seconds timings warnings error score"
    assert set(expected.split()) <= set(record)


def test_caption_keeps_to_a_number_of_tokens_and_chooses_frames(folder):
    result = run(
        "caption", SAMPLE, "--model", folder, "--mode", "prune", "--max-visual-tokens", 25, "--min-keep", 4,
        "--num-frames", 3, "--frames", "saliency", "--saliency", "spectral_residual", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["max_visual_tokens"], record["min_keep"], record["scope"]) == (25, 4, "clip")
    assert (record["keep_ratio"], record["visual_tokens"], record["frames"]) == (1.0, 25, "saliency")
    assert len(record["frame_pts_seconds"]) == 3
    assert record["timings"]["choose_ms"] > 0


def test_caption_zooms_and_tells_where(folder):
    result = run(
        "caption", SAMPLE, "--model", folder, "--mode", "zoom+prune", "--zoom", 3, "--keep-ratio", 0.5,
        "--num-frames", 2, "--saliency", "center", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["mode"], record["zoom"], record["views"], record["visual_tokens"]) == ("zoom+prune", 3.0, 4, 32)
    for left, top, right, bottom in record["zoom_boxes"]:
        assert (left + right, top + bottom) == pytest.approx((1.0, 1.0), abs=0.02)
        assert (right - left, bottom - top) == pytest.approx((1 / 3, 1 / 3), abs=0.01)


def test_caption_of_a_folder_goes_on_after_a_failure(folder, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "a.mp4").write_bytes(b"")
    (videos / "b.mp4").write_bytes(SAMPLE.read_bytes())
    (videos / "c.name").write_text("hello")
    (videos / "notes.txt").write_text("hello")
    result = run("caption", videos, "--model", folder, "--num-frames", 1)
    assert result.exit_code == 1
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"{videos / 'b.mp4'}\t")
    assert "a.mp4" in result.stderr
    assert "c.name" in result.stderr
    assert "2 of 3 videos failed" in result.stderr


@pytest.mark.parametrize("arguments", [("--mode", "prun"), ("--start", "3", "--end", "1")])
def test_wrong_use_destroys_no_output(folder, tmp_path, arguments):
    out = tmp_path / "out.jsonl"
    assert run("caption", SAMPLE, "--model", folder, "--output", out, *arguments).exit_code == 2
    assert not out.exists()
    out.write_text("kept")
    assert run("caption", SAMPLE, "--model", folder, "--output", out, "--overwrite", *arguments).exit_code == 2
    assert out.read_text() == "kept"


def test_on_a_terminal_captions_still_go_to_standard_output(folder):
    """The progress bar, drawn where standard error is a terminal, must not carry them off."""
    import pty

    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "salcap.cli", "caption", SAMPLE, "--model", folder, "--num-frames", "1", "--json"]
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=follower, timeout=120, check=True)
    os.close(follower)
    os.close(leader)
    assert json.loads(process.stdout)["path"] == str(SAMPLE)


def test_subtitles(folder, tmp_path):
    out = tmp_path / "out.vtt"
    result = run("caption", SAMPLE, "--model", folder, "--num-frames", 1, "--output", out)
    assert result.exit_code == 0
    start, end = out.read_text().splitlines()[2].split(" --> ")
    assert start == "00:00:00.000"
    assert end == "00:00:06.000"  # the whole sample, not where its one frame stands


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--mode", "prun"), "did you mean 'prune'"),
        (("--keep-ratio", "2"), "(0, 1]"),
        (("--mode", "scale", "--saliency", "centre"), "center"),
        (("--output", "x.doc"), ".jsonl, .vtt, .srt"),
        (("--num-frames", "0"), "--num-frames"),
        (("--device", "foo"), "device 'foo' cannot be used"),
        (("--start", "3", "--end", "1"), "got 3.0 to 1.0 s"),
        (("--mode", "scale", "--policy", "top"), "policy 'top' does nothing in mode 'scale'"),
        (("--mode", "zoom", "--zoom", "1"), "zoom must be above 1 and finite, got 1.0"),
        (("--mode", "scale", "--zoom", "3"), "zoom 3.0 does nothing in mode 'scale': it needs zoom"),
        (("--mode", "prune"), "needs a keep_ratio below 1 or max_visual_tokens"),
        (("--mode", "prune", "--max-visual-tokens", "7"), "max_visual_tokens must be at least 8 for 8 frames"),
        (("--mode", "scale", "--max-visual-tokens", "64"), "max_visual_tokens 64 needs a mode with 'prune'"),
        (("--frames", "salient"), "unknown frames 'salient', allowed: uniform, saliency"),
    ],
)
def test_wrong_use_is_status_2_and_says_what_is_allowed(folder, arguments, message):
    result = run("caption", SAMPLE, "--model", folder, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_unknown_model_is_a_clear_error():
    result = run("caption", SAMPLE, "--model", "nobody/nothing")
    assert result.exit_code == 2
    assert "nobody/nothing" in result.stderr
    assert "HF_HUB_OFFLINE" in result.stderr


def test_list_names_what_can_be_asked_for():
    listing = json.loads(run("list", "--json").stdout)
    assert {"center", "random", "spectral_residual", "uniform"} <= set(listing["saliency"])
    assert {"git", "blip", "vision-encoder-decoder"} <= set(listing["captioner_families"])
    assert "salcap-mini" in listing["bundled_models"]
    assert "spectral_residual" in run("list").stdout


def test_doctor_reports(monkeypatch):
    report = json.loads(run("doctor", "--json").stdout)
    assert report["packages"]["torch"].startswith("2.")
    assert report["weights"]["salcap-mini"] < 32
    monkeypatch.setenv("PATH", "/nowhere")
    result = run("doctor", "--json")
    assert result.exit_code == 1
    assert any("no Java" in problem for problem in json.loads(result.stdout)["problems"])


def test_score(tmp_path, java):
    references = {"v1": ["a dog runs on the grass", "a dog is running"], "v2": ["two men play chess", "men at a table"]}
    (tmp_path / "r.json").write_text(json.dumps(references))
    (tmp_path / "c.json").write_text(json.dumps({key: texts[0] for key, texts in references.items()}))
    result = run("score", "--references", tmp_path / "r.json", "--candidates", tmp_path / "c.json", "--json")
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)
    assert scores["bleu_1"] == pytest.approx(1.0, abs=1e-6)
    assert scores["reasons"] == {}
    assert "Stanford" in scores["tokenizer"]


def test_score_without_java(tmp_path, monkeypatch):
    (tmp_path / "r.json").write_text(
        json.dumps({"v1": ["A dog runs."], "v2": ["two men play chess", "men at a table"]})
    )
    (tmp_path / "c.json").write_text(json.dumps({"v1": "a dog runs", "v2": "men at a table"}))
    monkeypatch.setenv("PATH", "/nowhere")
    command = ("score", "--references", tmp_path / "r.json", "--candidates", tmp_path / "c.json", "--json")
    result = run(*command)
    assert result.exit_code == 1
    scores = json.loads(result.stdout)
    assert scores["bleu_1"] == pytest.approx(1.0, abs=1e-6)
    assert scores["meteor"] is None
    assert "no java on PATH" in scores["reasons"]["meteor"]
    assert "Python" in scores["tokenizer"]
    assert json.loads(run(*command, "--tokenizer", "java").stdout)["bleu_1"] is None
    assert run(*command, "--tokenizer", "nltk").exit_code == 2


def test_score_reads_what_salcap_and_msrvtt_write(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    texts, splits = {"v1": "a dog runs", "v2": "men play chess", "v3": "a cat"}, ("test", "test", "train")
    videos = [{"video_id": name, "split": split} for name, split in zip(texts, splits, strict=True)]
    sentences = [{"video_id": name, "caption": text} for name, text in texts.items()]
    (tmp_path / "r.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    records = [{"id": f"clips/{name}.mp4", "caption": texts[name], "error_class": None} for name in ("v1", "v2")]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    command = ("score", "--references", tmp_path / "r.json", "--candidates", tmp_path / "c.jsonl", "--json")
    scores = json.loads(run(*command, "--split", "test").stdout)
    assert scores["bleu_1"] == pytest.approx(1.0, abs=1e-6)
    assert "ids differ: 1 references without candidate: 'v3'" in run(*command).stderr
    (tmp_path / "c.jsonl").write_text("id,caption\nv1,a dog\n")
    result = run(*command)
    assert result.exit_code == 2
    assert "c.jsonl is not JSON" in result.stderr
    assert "allowed: JSON {id: caption or [captions]}, results as a list of {image_id or video_id" in result.stderr


def test_evaluate(folder, tmp_path, java, shared):
    out = tmp_path / "rows.json"
    result = run(
        "evaluate", "--dataset", "flickr8k-val", "--root", shared / "data/captions/flickr8k", "--model", folder,
        "--limit", 6, "--keep-ratio", "0.5,0.25", "--policy", "top,random", "--num-beams", 1, "--json", "--output", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    settings = [(r["keep_ratio"], r["policy"]) for r in rows]
    assert settings == [(0.5, "top"), (0.5, "random"), (0.25, "top"), (0.25, "random")]
    assert all(r["num_items"] == 6 and "cider" in r["scores"] for r in rows)
    assert len(json.loads(out.read_text())[0]["captions"]) == 6
    result = run(
        "evaluate", "--dataset", "flickr8k-val", "--root", shared / "data/captions/flickr8k", "--model", folder,
        "--limit", 2, "--policy", "top,random", "--max-visual-tokens", 5, "--min-keep", 3, "--num-beams", 1, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(r["policy"], r["visual_tokens"]) for r in rows] == [("top", 5), ("random", 5)]
    assert all((r["max_visual_tokens"], r["min_keep"], r["keep_ratio"]) == (5, 3, 1.0) for r in rows)
    result = run(
        "evaluate", "--dataset", "flickr8k-val", "--root", shared / "data/captions/flickr8k", "--model", folder,
        "--limit", 2, "--mode", "zoom", "--zoom", 1.5, "--saliency", "random", "--num-beams", 1, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)
    assert (row["mode"], row["zoom"], row["saliency"], row["visual_tokens"]) == ("zoom", 1.5, "random", 32)


@pytest.mark.parametrize("dataset, message", [("mscoco", "allowed: flickr8k-val"), ("flickr8k-val", "captions.jsonl")])
def test_evaluate_fails(dataset, message, tmp_path):
    result = run("evaluate", "--dataset", dataset, "--root", tmp_path)
    assert result.exit_code == 2
    assert message in result.stderr


def test_train_names_a_wrong_key(tmp_path):
    for text, answer in (
        ("outputs: x\ncaptioner: salcap-mini\n", "did you mean 'output'"),
        ("outputs: x\nstages: []\n", "did you mean 'output'"),
        ("output: x\n", "'captioner' (FineTuning) or 'stages' (CaptionerTraining)"),
    ):
        (tmp_path / "c.yaml").write_text(text)
        result = run("train", tmp_path / "c.yaml")
        assert result.exit_code == 2
        assert answer in result.stderr


def test_train_refuses_to_go_on_with_other_settings(folder, tmp_path):
    rows = [{"video": "a.mp4", "id": name, "captions": ["a woman smiles"]} for name in "ab"]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.mp4").symlink_to(SAMPLE)
    data = f"train: {{dataset: videos, root: {tmp_path}}}\nnum_frames: 1\n"
    config = f"output: {tmp_path / 'run'}\ncaptioner: {folder}\n{data}"
    for rate, status in ((0.001, 0), (0.002, 2)):
        (tmp_path / "c.yaml").write_text(f"{config}epochs: 1\nlearning_rate: {rate}\n")
        result = run("train", tmp_path / "c.yaml")
        assert result.exit_code == status, result.output
    assert "made with other settings" in " ".join(result.stderr.split())


@pytest.mark.parametrize("variable", ["ANY", "FORCE_COLOR", "TTY_COMPATIBLE"])
def test_off_a_terminal_progress_is_a_line_after_ten_seconds_then_one_a_minute(monkeypatch, capsys, variable):
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr("salcap.cli.console._errors", Console(stderr=True))
    clock = iter((0.0, 11.0, 11.1, 15.0, 60.0, 80.0, 90.0))
    monkeypatch.setattr("salcap.cli.console.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with progress_bar(100, "captioning") as advance:
        for count in (1, 1, 5, 5, 8, 8):
            advance(count, 40)
    assert capsys.readouterr().err.splitlines() == [
        "captioning: 2 of 40, 0.18 a second, 4 min left",
        "captioning: 12 of 40, 0.20 a second, 2 min left",
    ]
