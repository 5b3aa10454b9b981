"""Long videos in a corpus: a record for each window, and the same promises as for whole clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from video_factory import make_shots

import salcap.corpus
from salcap import SaliencyCaptioner
from salcap.corpus import caption_corpus
from salcap.datasets.captioned_videos import CaptionedItem, create_set
from salcap.manifest import Item
from salcap.outputs import export_records
from salcap.records import read_records

FAST: dict[str, Any] = {"num_frames": 2, "max_new_tokens": 4, "num_workers": 0}


@pytest.fixture(scope="module")
def captioner() -> SaliencyCaptioner:
    tiny = tiny_models.mini()
    return SaliencyCaptioner.from_pretrained(
        tiny.model, tiny.processor, saliency="center", mode="prune", keep_ratio=0.5
    )


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> str:
    """6 s with cuts at 1.6, 2.92 and 5 s."""
    return str(make_shots(tmp_path_factory.mktemp("shots") / "talk.mp4", [40, 33, 52, 25]))


@pytest.fixture
def items(talk: str) -> list[Item]:
    return [Item(talk, "talk"), Item("missing.mp4", "gone"), Item(talk, "part", 1.5, 5.5)]


def without_times(path: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "timings"} for record in read_records(path)]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_window_has_a_record_in_order(captioner, talk, items, tmp_path, workers):
    out, seen = tmp_path / "out.jsonl", []
    options = {**FAST, "num_workers": workers}
    summary = caption_corpus(
        captioner, items, out, windows="shots", batch_size=2, progress=lambda *step: seen.append(step[1:]), **options
    )
    records = list(read_records(out))
    assert [(r["id"], r["video"], r["window"], r["is_last_window"]) for r in records] == [
        ("talk#1", "talk", 1, False), ("talk#2", "talk", 2, False), ("talk#3", "talk", 3, False),
        ("talk#4", "talk", 4, True), ("gone#1", "gone", 1, True), ("part#1", "part", 1, False),
        ("part#2", "part", 2, True),
    ]  # fmt: skip
    assert [(r["start_seconds"], r["end_seconds"]) for r in records] == [
        (0.0, 1.6), (1.6, 2.92), (2.92, 5.0), (5.0, 6.0), (None, None), (1.5, 2.92), (2.92, 5.5),
    ]  # fmt: skip
    for record in records:
        if record["error"] is None:
            assert record["start_seconds"] <= min(record["frame_pts_seconds"])
            assert max(record["frame_pts_seconds"]) < record["end_seconds"]
    alone = captioner.caption(talk, num_frames=2, start_seconds=1.6, end_seconds=2.92, max_new_tokens=4)
    assert (records[1]["caption"], records[1]["frame_pts_seconds"]) == (alone.text, list(alone.frame_pts_seconds))
    assert records[4]["error_class"] == "VideoDecodeError"
    assert (summary.num_items, summary.num_new, summary.errors) == (7, 7, {"VideoDecodeError": 1})
    assert [done for done, _ in seen] == [1, 2, 3, 4, 5, 6, 7]
    assert all(done <= total <= 7 for done, total in seen)
    assert seen[-1] == (7, 7)


def test_one_video_from_python_window_by_window(captioner, talk):
    captions = list(captioner.caption_windows(talk, 2.5, num_frames=2, max_new_tokens=4))
    assert [(caption.start_seconds, caption.end_seconds) for caption in captions] == [(0, 2.5), (2.5, 5), (5, 6)]
    with pytest.raises(ValueError, match="windows must be"):
        next(captioner.caption_windows(talk, "scenes"))


def test_cut_off_at_any_record_it_goes_on(captioner, items, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    caption_corpus(captioner, items, whole, windows=2.0, **FAST)
    lines = whole.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    for number in range(1, len(lines)):
        out.write_bytes(b"".join(lines[:number]) + lines[number][:20])  # the next one is torn
        (tmp_path / "out.jsonl.settings").write_bytes((tmp_path / "whole.jsonl.settings").read_bytes())
        summary = caption_corpus(captioner, items, out, windows=2.0, **FAST)
        assert (summary.num_items, summary.num_new) == (6, 6 - number)
        assert without_times(out) == without_times(whole)


def test_a_video_that_is_done_is_not_searched_again(captioner, items, tmp_path, monkeypatch):
    out, searched = tmp_path / "out.jsonl", []
    item_windows = salcap.corpus.item_windows

    def spy(item, *rest):
        searched.append(item.id)
        return item_windows(item, *rest)

    monkeypatch.setattr(salcap.corpus, "item_windows", spy)
    caption_corpus(captioner, items, out, windows="shots", **FAST)
    caption_corpus(captioner, items, out, windows="shots", **FAST)
    assert searched == ["talk", "gone", "part"]
    caption_corpus(captioner, items, out, windows="shots", retry_failed=True, **FAST)
    assert searched[3:] == ["gone"]
    ids = [record["id"] for record in read_records(out)]
    assert ids == ["talk#1", "talk#2", "talk#3", "talk#4", "part#1", "part#2", "gone#1"]
    for other in (2.0, None):
        with pytest.raises(ValueError, match=r"made with other settings \(windows: 'shots', now"):
            caption_corpus(captioner, items, out, windows=other, **FAST)


def test_a_window_that_failed_comes_to_its_place_among_the_cues(captioner, talk, tmp_path, monkeypatch):
    out, predict = tmp_path / "out.jsonl", captioner.saliency.predict

    def picky(frames, **options):
        if frames.clip_seconds[0] == 2.0:
            raise KeyError("plug-in")
        return predict(frames, **options)

    with monkeypatch.context() as patch:
        patch.setattr(captioner.saliency, "predict", picky)
        assert caption_corpus(captioner, [talk], out, windows=2.0, **FAST).errors == {"KeyError": 1}
    assert caption_corpus(captioner, [talk], out, windows=2.0, retry_failed=True, **FAST).num_new == 1
    assert [record["window"] for record in read_records(out)] == [1, 3, 2]
    export_records(read_records(out), tmp_path / "out.srt")
    times = [line for line in (tmp_path / "out.srt").read_text().splitlines() if "-->" in line]
    assert times == [f"00:00:0{start},000 --> 00:00:0{start + 2},000" for start in (0, 2, 4)]


def test_shards_make_the_records_of_one_run(captioner, items, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    caption_corpus(captioner, items, whole, windows=2.0, **FAST)
    first = caption_corpus(captioner, items, out, windows=2.0, shard=(1, 2), **FAST)
    assert (first.num_items, first.records) == (5, None)
    part = tmp_path / "out.1-of-2.jsonl"
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:-1]))  # one window is missing: nothing is merged
    second = caption_corpus(captioner, items, out, windows=2.0, shard=(2, 2), **FAST)
    assert (second.records, out.exists()) == (None, False)
    again = caption_corpus(captioner, items, out, windows=2.0, shard=(1, 2), **FAST)
    assert (again.num_items, again.num_new, again.errors) == (6, 1, {"VideoDecodeError": 1})
    assert without_times(out) == without_times(whole)


def test_wrong_windows_fail(captioner, tmp_path):
    with pytest.raises(ValueError, match="windows must be a number of seconds above 0, or 'shots', got 0"):
        caption_corpus(captioner, ["a.mp4"], tmp_path / "out.jsonl", windows=0, **FAST)
    stills = create_set("pictures", "val", [CaptionedItem("a", tmp_path / "a.png", ("a cat",))], stills=True)
    with pytest.raises(ValueError, match="pictures holds photographs, which have no windows, got 2"):
        caption_corpus(captioner, stills, tmp_path / "out.jsonl", windows=2)
    assert list(tmp_path.iterdir()) == []


def test_records_are_plain_captions_with_their_place(captioner, talk):
    found: list[dict[str, Any]] = []
    summary = caption_corpus(captioner, [talk], windows=3.0, progress=lambda record, *_: found.append(record), **FAST)
    assert (summary.num_items, [record["id"] for record in found]) == (2, [f"{talk}#1", f"{talk}#2"])
    assert json.loads(json.dumps(found[0]))["window"] == 1
