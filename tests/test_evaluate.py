"""`salcap evaluate` on captioned videos, its receipt, and `salcap verify`, on a tiny captioner."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from test_captioner_loading import save
from torch import nn
from typer.testing import CliRunner
from video_factory import load_script, make_video

from salcap.cli import app
from salcap.datasets.captioned_videos import captions_sha256
from salcap.datasets.registry import load_captioned_set
from salcap.evaluation.captions import score_report
from salcap.evaluation.receipt import Receipt, read_receipts, verify_receipt, write_receipts
from salcap.hashing import weights_sha256
from salcap.saliency_captioner import SaliencyCaptioner
from salcap.sources import ClipSource


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save(tiny_models.mini(), tmp_path_factory.mktemp("model")))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def evaluate(model: Path, dataset: str, root: Path, *options: object) -> Any:
    quick = ("--num-frames", 2, "--num-beams", 1, "--max-new-tokens", 4, "--batch-size", 2, "--workers", 0)
    return run("evaluate", "--dataset", dataset, "--root", root, "--model", model, *quick, *options)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Five clips of one's own, the last of them no video."""
    rows = [
        {"video": f"clips/{n}.mp4", "id": f"v{n}", "captions": [f"number {n} is shown", "a grid"]} for n in range(5)
    ]
    (tmp_path / "clips").mkdir()
    for n in range(4):
        make_video(tmp_path / f"clips/{n}.mp4", 12 + n)
    (tmp_path / "clips/4.mp4").write_text("hello")
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.fixture
def quick_scores(java: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real scores, without METEOR, which takes seconds to start."""
    metrics = ("bleu", "rouge_l", "cider")
    monkeypatch.setattr("salcap.evaluation.evaluate.score_report", partial(score_report, metrics=metrics))


def test_the_clips_of_msrvtt_give_a_receipt_that_verify_confirms(
    model: Path, tmp_path: Path, shared: Path, java: str
) -> None:
    root, out = tmp_path / "msrvtt", tmp_path / "receipt.json"
    root.mkdir()
    for name in ("clips", "test_videodatainfo.json.gz", "train_val_videodatainfo.json.gz"):
        (root / name).symlink_to((shared / "data/captions/msrvtt" / name).resolve())
    result = evaluate(model, "msrvtt", root, "--split", "test", "--output", out)
    assert result.exit_code == 2
    assert "2985 of 2990 items of msrvtt are missing: video7015: no video file" in result.stderr
    options = ("--split", "test", "--allow-missing", "--keep-ratio", 0.5, "--policy", "random")
    result = evaluate(model, "msrvtt", root, *options, "--workers", 1, "--output", out, "--json")
    assert result.exit_code == 0, result.output
    assert "partial: scores of 5 of 2990 items are not those of the split" in result.stderr
    row, receipt = json.loads(result.stdout), json.loads(out.read_text())
    assert (row["partial"], row["num_items"], row["num_missing"]) == (True, 5, 2985)
    assert row["scores"] == receipt["scores"]
    assert (receipt["partial"], receipt["num_in_split"], len(receipt["missing"])) == (True, 2990, 2985)
    assert list(receipt["captions"]) == [f"video{n}" for n in range(7010, 7015)]
    assert {len(times) for times in receipt["frame_pts_seconds"].values()} == {2}
    settings = {key: receipt[key] for key in ("saliency", "mode", "policy", "keep_ratio", "num_frames", "seed")}
    assert settings == {
        "saliency": "center",
        "mode": "prune",
        "policy": "random",
        "keep_ratio": 0.5,
        "num_frames": 2,
        "seed": 0,
    }
    assert receipt["generation"] == {"num_beams": 1, "max_new_tokens": 4}
    assert receipt["weights_sha256"] == weights_sha256(SaliencyCaptioner.from_pretrained(str(model)).captioner.model)
    assert receipt["versions"]["torch"] == torch.__version__
    assert receipt["tokenizer"]
    assert not list(tmp_path.glob("*.partial*"))

    result = run("verify", out, "--root", root)
    assert result.exit_code == 0, result.output
    assert "5 of 2990 items: confirmed, 7 scores of a partial set" in result.stdout
    receipt["captions"]["video7010"] = "a band performing in a small club"
    receipt["scores"]["meteor"], receipt["missing_scores"]["meteor"] = None, "slow to start"
    out.write_text(json.dumps(receipt))
    result = run("verify", out, "--root", root)
    assert result.exit_code == 1
    assert "hash of the captions: the receipt says" in result.stdout
    assert "cider: the receipt says" in result.stdout


def test_the_clips_of_msvd(model: Path, tmp_path: Path, shared: Path, quick_scores: None) -> None:
    root, out = shared / "data/captions/msvd", tmp_path / "receipt.json"
    result = evaluate(model, "msvd", root, "--split", "train", "--allow-missing", "--output", out)
    assert result.exit_code == 0, result.output
    (receipt,) = read_receipts(out)
    assert list(receipt.captions) == ["vid98", "vid184", "vid311", "vid836", "vid930", "vid950", "vid1025"]
    assert (receipt.num_in_split, len(receipt.missing), receipt.partial) == (1200, 1193, True)


def test_an_unreadable_video_is_missing_until_it_is_mended(
    model: Path, videos: Path, quick_scores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = videos / "receipt.json", []
    inner = SaliencyCaptioner.caption_clips

    def watched(self: SaliencyCaptioner, clips: list[ClipSource], *arguments: Any, **options: Any) -> Any:
        seen.extend(Path(clip.name).name for clip in clips)
        return inner(self, clips, *arguments, **options)

    monkeypatch.setattr(SaliencyCaptioner, "caption_clips", watched)
    result = evaluate(model, "videos", videos, "--output", out)
    assert result.exit_code == 1
    assert "1 of 5 items of videos are missing: v4: not captioned: cannot read video" in result.stderr
    assert not out.exists()
    assert len((videos / "receipt.json.partial/row-1.jsonl").read_text().splitlines()) == 5
    make_video(videos / "clips/4.mp4")
    result = evaluate(model, "videos", videos, "--output", out)
    assert result.exit_code == 0, result.output
    assert "none 1: 4 of 5 captions are done, going on" in result.stderr
    assert seen == ["0.mp4", "1.mp4", "2.mp4", "3.mp4", "4.mp4", "4.mp4"]
    assert not (videos / "receipt.json.partial").exists()
    (receipt,) = read_receipts(out)
    assert (receipt.partial, receipt.missing, list(receipt.captions)) == (False, {}, ["v0", "v1", "v2", "v3", "v4"])


def test_a_killed_run_goes_on_and_gives_the_same(
    model: Path, videos: Path, quick_scores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--allow-missing", "--keep-ratio", "0.5,0.25", "--policy", "random")
    result = evaluate(model, "videos", videos, *options, "--output", videos / "whole.json")
    assert result.exit_code == 0, result.output
    inner, calls = SaliencyCaptioner.caption_clips, []

    def killed(self: SaliencyCaptioner, *arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 5:  # in the second row
            raise KeyboardInterrupt
        return inner(self, *arguments, **options)

    out, log = videos / "receipt.json", videos / "receipt.json.partial/row-2.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(SaliencyCaptioner, "caption_clips", killed)
        assert evaluate(model, "videos", videos, *options, "--output", out).exit_code != 0
    with log.open("a") as file:
        file.write('{"id": "v3", "cap')  # cut off by the kill
    result = evaluate(model, "videos", videos, *options, "--num-frames", 3, "--output", out)
    assert result.exit_code == 2
    assert "row-1.jsonl was made with other settings (num_frames: 2, now 3)" in result.stderr
    result = evaluate(model, "videos", videos, *options, "--batch-size", 3, "--output", out)
    assert "(batch_size: 2, now 3)" in result.stderr
    listed = (videos / "captions.jsonl").read_text()
    first, *others = (json.loads(line) for line in listed.splitlines())
    (videos / "captions.jsonl").write_text("\n".join(map(json.dumps, [{**first, "start": 0.25}, *others])))
    result = evaluate(model, "videos", videos, *options, "--output", out)
    assert (result.exit_code, "other settings (times_sha256" in " ".join(result.stderr.split())) == (2, True)
    (videos / "captions.jsonl").write_text(listed)
    result = evaluate(model, "videos", videos, *options, "--output", out)
    assert result.exit_code == 0, result.output
    assert "random 0.5: 4 of 5 captions are done" in result.stderr  # v4 failed, and is tried again
    assert "random 0.25: 2 of 5 captions are done" in result.stderr
    whole, resumed = (read_receipts(videos / name) for name in ("whole.json", "receipt.json"))
    assert [row.keep_ratio for row in resumed] == [0.5, 0.25]
    for before, after in zip(whole, resumed, strict=True):
        assert replace(before, stage_ms={}) == replace(after, stage_ms={})
    assert all(list(row.missing) == ["v4"] and row.partial for row in resumed)


def test_a_limit_makes_the_result_partial(model: Path, videos: Path, quick_scores: None) -> None:
    result = evaluate(model, "videos", videos, "--limit", 2, "--json")
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)
    assert (row["partial"], row["num_items"], row["num_missing"], row["num_in_split"]) == (True, 2, 0, 5)


def test_a_part_of_a_video_is_captioned_as_such(model: Path, videos: Path, quick_scores: None) -> None:
    rows = [
        {"video": "clips/0.mp4", "id": f"{s}", "captions": ["x y"], "start": s, "end": s + 0.2} for s in (0.0, 0.25)
    ]
    (videos / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = evaluate(model, "videos", videos, "--output", videos / "r.json")
    assert result.exit_code == 0, result.output
    times = read_receipts(videos / "r.json")[0].frame_pts_seconds
    assert all(float(start) <= time <= float(start) + 0.2 for start, each in times.items() for time in each)


def test_where_all_is_missing_nothing_is_left_to_score(model: Path, videos: Path) -> None:
    (videos / "captions.jsonl").write_text('{"video": "none.mp4", "captions": ["x"]}\n')
    words = "--allow-missing scores the rest", "none is left to score"
    for option, said, unsaid, code in ((), *words, 2), (("--allow-missing",), *words[::-1], 1):
        result = evaluate(model, "videos", videos, *option)
        assert (result.exit_code, said in result.stderr, unsaid in result.stderr) == (code, True, False)


@pytest.mark.parametrize(
    "dataset, options, message",
    [
        ("msrvtt", (), "msrvtt needs a split"),
        ("videos", ("--split", "test"), "unknown split"),
        ("videos", ("--untrimmed",), "allowed: msrvtt, msvd"),
        ("videos", ("--human",), "--human belongs to --task saliency"),
    ],
)
def test_evaluate_fails(dataset: str, options: tuple[str, ...], message: str, model: Path, videos: Path) -> None:
    result = evaluate(model, dataset, videos, *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_stills_take_no_choice_of_frames(model: Path, shared: Path) -> None:
    result = evaluate(model, "flickr8k-val", shared / "data/captions/flickr8k", "--limit", 1)
    assert result.exit_code == 2
    assert "num_frames and frames do nothing" in result.stderr


@pytest.fixture(scope="module")
def stated(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Receipt:
    """A receipt of two captions, scored by BLEU only."""
    root = tmp_path_factory.mktemp("set")
    rows = [{"video": f"{n}.mp4", "id": n, "captions": [f"a {n} runs far away"]} for n in ("cat", "dog")]
    (root / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = load_captioned_set("videos", root)
    captions = {"cat": "a cat runs far away", "dog": "the dog runs far off"}
    references = {item.id: list(item.captions) for item in dataset.items}
    report = score_report(references, captions, ["bleu"])
    values: dict[str, Any] = dict.fromkeys(Receipt.__dataclass_fields__, None)
    return Receipt(
        **{
            **values,
            "schema_version": 1,
            "dataset": "videos",
            "untrimmed": False,
            "model": str(root),
            "mode": "none",
            "split_sha256": dataset.sha256,
            "num_in_split": 2,
            "num_items": 2,
            "missing": {},
            "partial": False,
            "generation": {},
            "generation_defaults": {},
            "frames": "uniform",
            "batch_size": 1,
            "keep_ratio": 1.0,
            "min_keep": 1,
            "strength": 0.5,
            "seed": 0,
            "versions": {},
            "hardware": {},
            "visual_tokens": 1.0,
            "stage_ms": {},
            "tokenizer": report.tokenizer,
            "scores": report.scores,
            "captions": captions,
            "missing_scores": {name: "not here" for name, score in report.scores.items() if score is None},
            "references_sha256": captions_sha256(references),
            "captions_sha256": captions_sha256(captions),
            "frame_pts_seconds": {"cat": (0.0,), "dog": (0.5,)},
        }
    )


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, []),
        ({"captions": {"cat": "A cat runs far away", "dog": "the dog runs far off"}}, ["hash of the captions"]),
        ({"scores.bleu_4": 0.99}, ["bleu_4: the receipt says 0.990000, its captions score"]),
        ({"scores.bleu_4": None}, ["bleu_4: the receipt has neither a score nor a reason"]),
        ({"scores.spice": 0.2}, ["spice: the receipt says 0.200000, here there is none"]),
        ({"split_sha256": "0" * 64}, ["split hash: the receipt says 000"]),
        ({"partial": True}, ["partial: the receipt says True, here it is False"]),
        ({"num_items": 3, "missing": {"cow": "lost"}}, ["items scored", "1 ids are not in the split: ['cow']"]),
        ({"missing": {"cat": "lost"}}, ["1 ids are both captioned and missing"]),
        ({"tokenizer": "str.split"}, ["tokenizer: the receipt says str.split"]),
        ({"references_sha256": "1"}, ["hash of the references"]),
    ],
)
def test_verify_tells_every_difference(change: dict[str, Any], expected: list[str], stated: Receipt, java: str) -> None:
    fields = {key: value for key, value in change.items() if "." not in key}
    scores = {key.removeprefix("scores."): value for key, value in change.items() if "." in key}
    changed = replace(stated, **fields, scores={**stated.scores, **scores})
    found = verify_receipt(changed, load_captioned_set("videos", Path(stated.model)))
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))


def test_verify_without_references_says_so(stated: Receipt) -> None:
    captions = {**stated.captions, "cow": "a cow"}
    changed = replace(stated, captions=captions, num_items=3, captions_sha256=captions_sha256(captions))
    found = verify_receipt(changed, load_captioned_set("videos", Path(stated.model)))
    assert found[-1] == "not scored again: 1 captions have no references here: ['cow']"


def test_receipts_are_read_as_they_were_written(stated: Receipt, tmp_path: Path) -> None:
    for receipts in ([stated], [stated, replace(stated, seed=1)]):
        write_receipts(tmp_path / "r.json", receipts)
        assert read_receipts(tmp_path / "r.json") == receipts
    odd = replace(stated, captions={"\ud800": "\udcff"})
    write_receipts(tmp_path / "r.json", [odd])
    assert read_receipts(tmp_path / "r.json") == [odd]
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"schema_version": 2}, "no receipt of schema version 1, it states version 2"),
        ({"seeds": 1}, "unknown key 'seeds'; did you mean 'seed'"),
        ({"captions": {"cat": 1}}, "captions: cat: expected str, got 1"),
        (None, "states version None"),
        ([], "holds no receipt"),
    ],
)
def test_verify_refuses_what_is_no_receipt(change: Any, message: str, stated: Receipt, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    whole = {**asdict(stated), **change} if isinstance(change, dict) else change or []
    path.write_text(json.dumps("hello" if change is None else whole))
    result = run("verify", path, "--root", stated.model)
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_hash_of_weights_is_of_the_weights(tmp_path: Path) -> None:
    layer = nn.Linear(2, 2).bfloat16()
    before = weights_sha256(layer)
    assert weights_sha256(nn.Linear(2, 2).bfloat16()) != before
    with torch.no_grad():
        layer.bias[0] += 1
    assert weights_sha256(layer) != before
    assert weights_sha256(nn.ReLU()) is weights_sha256(nn.Linear(2, 2, device="meta")) is None
    layer.weights_path = tmp_path / "w.bin"
    layer.weights_path.write_bytes(b"abc")
    assert weights_sha256(layer) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_stand_in_set_is_a_set(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    script = load_script("make_standin_set")
    arguments = ["--num-videos", "2", "--annotations", str(shared / "data/captions/msrvtt")]
    for rendered in (2, 0):  # the second time all are there
        monkeypatch.setattr("sys.argv", ["make_standin_set.py", str(tmp_path), *arguments])
        script.main()
        assert f"{rendered} of 2 clips rendered" in capsys.readouterr().out
    loaded = load_captioned_set("msrvtt", tmp_path, "test")
    assert [item.id for item in loaded.items if item.path] == ["video7010", "video7011"]
    first, again, other = (script.draw_clip(seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert first.shape != other.shape or (first != other).any()
