"""``salcap caption`` over many videos: goes on, exports, shards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
from test_captioner_loading import save
from test_cli import SAMPLE, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return Path(save(tiny_models.mini(), tmp_path_factory.mktemp("model")))


@pytest.fixture
def clips(tmp_path) -> Path:
    clips = tmp_path / "clips"
    (clips / "below").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "below/c.mp4"):
        (clips / name).symlink_to(SAMPLE)
    (clips / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{SAMPLE}'\n")
    return clips


def test_caption_marks_low_scores(folder, clips, tmp_path):
    options = ("--model", folder, "--num-frames", 1, "--output", tmp_path / "out.jsonl")
    assert run("caption", clips / "a.mp4", *options, "--min-score", 0).exit_code == 0
    (record,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert record["low_confidence"] is True
    assert run("caption", clips / "a.mp4", *options, "--min-score", "nan").exit_code == 2


def test_caption_goes_on_with_its_output_and_exports_it(folder, clips, tmp_path):
    out, table = tmp_path / "out.jsonl", tmp_path / "out.csv"
    options = ("--model", folder, "--num-frames", 1, "--workers", 0, "--output", out)
    first = run("caption", clips / "b.mp4", *options)
    assert first.exit_code == 0, first.output
    record = out.read_text()
    result = run("caption", clips, "--recursive", *options, "--export", table, "--export", tmp_path / "out.json")
    assert result.exit_code == 1
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [
        str(clips / name) for name in ("a.mp4", "below/c.mp4")
    ]
    assert "1 of 4 videos were done before or by others" in result.stderr
    assert "1 of 4 videos failed: VideoDecodeError 1" in result.stderr
    assert out.read_text().startswith(record)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [Path(r["id"]).name for r in records] == ["b.mp4", "a.mp4", "c.mp4", "list.mp4"]
    assert len(table.read_text().splitlines()) == 5
    assert len(json.loads((tmp_path / "out.json").read_text())) == 3
    other = run("caption", clips, *options, "--num-beams", 2)
    assert other.exit_code == 2
    assert "made with other settings (num_beams: none, now 2)" in " ".join(other.stderr.split())
    assert len(out.read_text().splitlines()) == 4


def test_the_same_command_makes_its_exports_again(folder, clips, tmp_path):
    out, table, coco = (tmp_path / name for name in ("out.jsonl", "out.csv", "out.json"))
    options = ("--model", folder, "--num-frames", 1, "--workers", 0, "--output", out, "--export", table)
    assert run("caption", clips / "?.mp4", *options).exit_code == 0
    made = table.read_bytes()
    again = run("caption", clips / "?.mp4", *options, "--export", coco)
    assert (again.exit_code, "2 of 2 videos were done before" in again.stderr) == (0, True)
    assert (table.read_bytes(), len(json.loads(coco.read_text()))) == (made, 2)
    with out.open("a") as file:
        file.write('{"id": "torn')  # a kill while one more was written, before the export
    assert run("caption", clips / "*.mp4", *options).exit_code == 1  # with one that fails
    assert len(table.read_text().splitlines()) == 4
    out.write_text("".join(out.read_text().splitlines(keepends=True)[:2]))
    assert run("caption", clips / "*.mp4", *options).exit_code == 1
    assert len(table.read_text().splitlines()) == 4
    (clips / "list.mp4").unlink()
    (clips / "list.mp4").symlink_to(SAMPLE)
    assert run("caption", clips / "*.mp4", *options, "--retry-failed").exit_code == 0
    assert "list.mp4" in table.read_text()
    assert "VideoDecodeError" not in table.read_text()

    records = out.read_bytes()
    table.write_text("mine\n")
    refused = run("caption", clips / "*.mp4", *options)
    assert (refused.exit_code, "is not as it was exported from" in " ".join(refused.stderr.split())) == (2, True)
    assert (table.read_text(), out.read_bytes()) == ("mine\n", records)
    assert run("caption", clips / "*.mp4", *options, "--overwrite").exit_code == 0
    assert len(table.read_text().splitlines()) == 4


def test_names_that_cannot_be_printed_end_no_run(folder, tmp_path):
    """Nor does an output that lies among its videos become one of them."""
    os.symlink(SAMPLE, os.fsencode(tmp_path) + b"/\xff.mp4")
    (tmp_path / "a.mp4").symlink_to(SAMPLE)
    options = ("--model", folder, "--num-frames", "1", "--workers", "0", "--output", tmp_path / "out.jsonl")
    for part in (1, 2):
        command = (sys.executable, "-m", "salcap", "caption", tmp_path, *options, "--shard", f"{part}/2")
        strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
        done = subprocess.run(command, capture_output=True, env=strict, timeout=300)
        assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path}/\\udcff.mp4\t".encode())
    ids = [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ids == [f"{tmp_path}/a.mp4", f"{tmp_path}/\\udcff.mp4"]
    for code in ("latin-1", "ascii", "utf-8"):
        command = (sys.executable, "-m", "salcap", "caption", tmp_path, *options[:-2], "--json")
        environment = {**os.environ, "PYTHONIOENCODING": code}
        done = subprocess.run(command, capture_output=True, env=environment, timeout=300)
        paths = [json.loads(line)["path"] for line in done.stdout.splitlines()]
        assert paths == [f"{tmp_path}/a.mp4", f"{tmp_path}/\udcff.mp4"]


def test_caption_in_windows_makes_one_list_of_cues(folder, clips, tmp_path):
    out, cues = tmp_path / "out.jsonl", tmp_path / "out.vtt"
    options = ("--model", folder, "--num-frames", 1, "--workers", 0, "--windows", 2.5)
    result = run("caption", SAMPLE, *options, "--batch-tokens", 64, "--output", out, "--export", cues)
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [f"{SAMPLE}#{n}" for n in (1, 2, 3)]
    times = ("00:00:00.000 --> 00:00:02.500", "00:00:02.500 --> 00:00:05.000", "00:00:05.000 --> 00:00:06.000")
    expected = [f"{time}\n{record['caption']}\n\n" for time, record in zip(times, records, strict=True)]
    assert cues.read_text() == "WEBVTT\n\n" + "".join(expected)
    again = run("caption", SAMPLE, *options, "--output", out)
    assert "3 of 3 windows were done before" in again.stderr
    assert run("caption", SAMPLE, *options, "--output", tmp_path / "at-once.vtt").exit_code == 0
    assert (tmp_path / "at-once.vtt").read_text() == cues.read_text()
    several = run("caption", clips, *options, "--output", tmp_path / "b.jsonl", "--export", tmp_path / "b.vtt")
    assert several.exit_code == 2
    assert ".vtt subtitles belong to one video, got 3" in several.stderr


def test_caption_takes_a_data_set(folder, clips, tmp_path):
    rows = [{"video": f"{name}.mp4", "id": name, "captions": ["x"]} for name in ("a", "b", "lost")]
    (clips / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ("--model", folder, "--num-frames", 1, "--workers", 0, "--output", tmp_path / "out.jsonl")
    result = run("caption", "--dataset", "videos", "--root", clips, *options)
    assert result.exit_code == 1
    assert "error: 1 of 3 items of videos are missing: lost: no video file" in result.stderr
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == ["a", "b"]
    assert [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == ["a", "b"]


@pytest.mark.parametrize("name, output", [("a.jsonl", ()), ("a.csv.partial", ("--output", "x.jsonl", "--export"))])
def test_caption_overwrites_no_video(folder, tmp_path, monkeypatch, name, output):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(SAMPLE.read_bytes())
    Path("list.txt").write_text(f"{name}\n")
    options = (*(output or ("--output",)), name.removesuffix(".partial"), "--overwrite")
    result = run("caption", "list.txt", "--model", folder, *options)
    assert (result.exit_code, f"would overwrite {name}, which is read" in result.stderr) == (2, True)
    assert Path(name).read_bytes() == SAMPLE.read_bytes()


def test_a_data_sets_annotations_are_not_overwritten(folder, tmp_path):
    (tmp_path / "a.mp4").write_bytes(Path(SAMPLE).read_bytes())
    own = tmp_path / "captions.jsonl"
    own.write_text('{"video": "a.mp4", "captions": ["a woman smiles"]}')
    few = ("--dataset", "videos", "--root", tmp_path, "--model", folder, "--num-frames", "1", "--overwrite")
    result = run("caption", *few, "--output", own)
    assert result.exit_code == 2
    assert "which is read" in result.stderr
    assert own.read_text().startswith('{"video"')
    for _ in range(2):  # records that lie beside it are
        assert run("caption", *few, "--output", tmp_path / "records.jsonl").exit_code == 0


@pytest.mark.parametrize("launched", [True, False])
def test_caption_in_shards(folder, clips, tmp_path, monkeypatch, launched):
    out = tmp_path / "out.jsonl"
    for part in (1, 2):
        options = () if launched else ("--shard", f"{part}/2")
        for name, value in (("RANK", part - 1), ("WORLD_SIZE", 2)) if launched else ():
            monkeypatch.setenv(name, str(value))
        arguments = ("--model", folder, "--num-frames", 1, "--workers", 0, "--output", out)
        assert not out.exists()
        result = run("caption", clips / "*.mp4", *arguments, *options)
        assert result.exit_code == (0 if part == 1 and launched else 1)  # list.mp4 fails, in part 1
    assert "1 of 3 videos failed" in result.stderr
    assert [Path(json.loads(line)["id"]).name for line in out.read_text().splitlines()] == [
        "a.mp4",
        "b.mp4",
        "list.mp4",
    ]


def test_two_processes_of_accelerate_make_the_records_of_one(folder, clips, tmp_path, monkeypatch):
    outs = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    command = ("caption", clips / "?.mp4", "--model", folder, "--num-frames", 1, "--workers", 0, "--output")
    launch = (
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--main_process_port", "0", "-m", "salcap", *map(str, (*command, outs[1]))),
    )
    launched = subprocess.run(launch, capture_output=True, text=True, timeout=300)
    assert launched.returncode == 0, launched.stderr
    assert (tmp_path / "two.2-of-2.jsonl").exists()
    for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"):  # as with --cpu --num_processes 2
        monkeypatch.setenv(name, "x")
    assert "accelerate launch started one process; several take --multi_gpu" in run(*command, outs[0]).stderr
    records = [[{**json.loads(line), "timings": None} for line in out.read_text().splitlines()] for out in outs]
    assert [Path(record["id"]).name for record in records[0]] == ["a.mp4", "b.mp4"]
    assert records[0] == records[1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--shard", "half"), "--shard must be I/N"),
        (("--shard", "3/2", "--output", "x.jsonl"), "got 3 of 2"),
        (("--shard", "1/2"), "shards need an output"),
        (("--export", "x.csv"), "give --output with a .jsonl file"),
        (("--export", "x.doc", "--output", "x.jsonl"), "allowed: .csv, .json, .parquet, .vtt, .srt"),
        (("--windows", "scenes"), "windows must be a number of seconds above 0, or 'shots', got 'scenes'"),
        (("--batch-tokens", "0"), "Invalid value for '--batch-tokens'"),
        (("--dataset", "videos"), "give videos or --dataset, got"),
        (("--split", "val"), "--root and --split belong to --dataset"),
    ],
)
def test_wrong_use_of_the_corpus_runner(folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run("caption", SAMPLE, "--model", folder, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []
