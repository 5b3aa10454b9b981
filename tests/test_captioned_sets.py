"""Sets of captioned videos: counts, files found, what is missing, and annotations that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from salcap.datasets.captioned_videos import create_set, index_videos
from salcap.datasets.registry import CAPTIONED_SETS, load_captioned_set


@pytest.fixture
def msrvtt(shared: Path) -> Path:
    return shared / "data/captions/msrvtt"


@pytest.fixture
def msvd(shared: Path) -> Path:
    return shared / "data/captions/msvd"


def link(target: Path, source: Path, *names: str) -> Path:
    """A folder with files of another one in it."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        (target / name).symlink_to((source / name).resolve())
    return target


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("split, count, present", [("train", 6513, 3151), ("val", 497, 244), ("test", 2990, 720)])
def test_msrvtt_splits_have_their_counts(split: str, count: int, present: int, msrvtt: Path) -> None:
    loaded = load_captioned_set("msrvtt", msrvtt, split)
    assert (len(loaded.items), loaded.num_in_split, len(loaded.missing)) == (count, count, count - present)
    assert {len(item.captions) for item in loaded.items} == {20}
    assert all(item.start_seconds is None and item.end_seconds is None for item in loaded.items)


def test_msrvtt_finds_its_clips_by_id(msrvtt: Path) -> None:
    loaded = load_captioned_set("msrvtt", msrvtt, "test")
    found = {item.id: item.path for item in loaded.items if item.path}
    whole = {f"video{n}": msrvtt / "clips" / f"video{n}.mp4" for n in range(7010, 7015)}
    assert {name: found[name] for name in whole} == whole
    assert {path.parent for name, path in found.items() if name not in whole} == {msrvtt / "videos"}
    assert loaded.missing["video7015"] == "no video file"


def test_msrvtt_untrimmed_sources_have_times(msrvtt: Path) -> None:
    first = load_captioned_set("msrvtt", msrvtt, "test", untrimmed=True).items[0]
    assert (first.id, first.start_seconds, first.end_seconds) == ("video7010", 401.51, 419.65)


def test_msrvtt_1k_a_in_both_forms_of_its_csv(msrvtt: Path, tmp_path: Path) -> None:
    text = (msrvtt / "MSRVTT_JSFUSION_test.csv").read_text()
    write(tmp_path / "MSRVTT_JSFUSION_test.csv", text.replace(";", ","))
    commas, semicolons = (load_captioned_set("msrvtt", root, "1k-A-pairs") for root in (tmp_path, msrvtt))
    assert commas.sha256 == semicolons.sha256
    assert commas.items[0].id == "video9770"
    assert commas.items[0].captions == ("a person is connecting something to system",)
    whole = load_captioned_set("msrvtt", msrvtt, "1k-A")
    assert [item.id for item in whole.items] == [item.id for item in commas.items]
    assert (len(whole.items), {len(item.captions) for item in whole.items}) == (1000, {20})


def annotations(**counts: int) -> dict[str, Any]:
    """MSR-VTT's layout with one sentence for each clip."""
    splits = [split for split, count in counts.items() for _ in range(count)]
    videos = [{"video_id": f"video{n}", "split": split} for n, split in enumerate(splits)]
    return {"videos": videos, "sentences": [{"video_id": v["video_id"], "caption": v["split"]} for v in videos]}


def test_msrvtt_in_one_plain_file(tmp_path: Path) -> None:
    write(tmp_path / "msrvtt_data/MSRVTT_data.json", annotations(train=6513, validate=497, test=2990))
    write(tmp_path / "TestVideo/video7010.mp4", "")
    loaded = load_captioned_set("msrvtt", tmp_path, "test")
    assert [(item.id, item.captions) for item in loaded.items] == [(f"video{n}", ("test",)) for n in range(7010, 10000)]
    assert (len(loaded.missing), loaded.items[0].path) == (2989, tmp_path / "TestVideo/video7010.mp4")


def test_msrvtt_with_a_clip_too_few_fails(tmp_path: Path) -> None:
    write(tmp_path / "train_val_videodatainfo.json", annotations(train=2, validate=496))
    with pytest.raises(ValueError, match=r"split val of MSR-VTT has 497 clips, this file has .*'validate': 496"):
        load_captioned_set("msrvtt", tmp_path, "val")


def clip(video_id: str) -> dict[str, Any]:
    return {"video_id": video_id, "split": "test", "start time": 0, "end time": 1}


@pytest.mark.parametrize("name", ["../etc/passwd", "/etc/passwd", "a/b", "a\\b", "..", "C:x", "", 7])
def test_an_id_that_leaves_the_folder_fails(name: Any, tmp_path: Path) -> None:
    write(tmp_path / "test_videodatainfo.json", {"videos": [clip(name)], "sentences": []})
    with pytest.raises(ValueError, match="plain file name without separators"):
        load_captioned_set("msrvtt", tmp_path, "test")


@pytest.mark.parametrize(
    "file, content, split, message",
    [
        ("test_videodatainfo.json", {"clips": []}, "test", "no MSR-VTT annotation file: KeyError: 'videos'"),
        ("test_videodatainfo.json", "[", "test", "is not JSON"),
        ("MSRVTT_JSFUSION_test.csv", "id,text\nvideo1,a\n", "1k-A-pairs", "expected the columns key, vid_key"),
        ("MSRVTT_JSFUSION_test.csv", "key,vid_key,video_id,sentence\na,b,c\n", "1k-A-pairs", "4 columns in every"),
        ("MSRVTT_JSFUSION_test.csv", "key,vid_key,video_id,sentence\na,b,c,d\n", "1k-A-pairs", "1000 clips, this"),
        ("x", "", "test", "holds no test_videodatainfo.json or MSRVTT_data.json"),
        ("x", "", "tests", "did you mean 'test'"),
        ("x", "", None, "msrvtt needs a split, allowed: train, val, test, 1k-A"),
    ],
)
def test_msrvtt_fails(file: str, content: Any, split: str | None, message: str, tmp_path: Path) -> None:
    write(tmp_path / file, content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_captioned_set("msrvtt", tmp_path, split)


@pytest.mark.parametrize("split, count, present", [("train", 1200, 7), ("val", 100, 0), ("test", 670, 0)])
def test_msvd_splits(split: str, count: int, present: int, msvd: Path) -> None:
    loaded = load_captioned_set("msvd", msvd, split)
    assert (len(loaded.items), len(loaded.items) - len(loaded.missing)) == (count, present)
    without = sorted(key for key, why in loaded.missing.items() if why == "no reference captions")
    assert without == (["vid1429", "vid1442", "vid1509", "vid1712", "vid1817"] if split == "test" else [])


def test_msvd_finds_clips_by_youtube_id(msvd: Path) -> None:
    loaded = load_captioned_set("msvd", msvd, "train")
    stated = {entry["id"]: entry for entry in json.loads((msvd / "clips.json").read_text())}
    found = {item.id: item for item in loaded.items if item.path}
    assert {key: item.path.name for key, item in found.items()} == {key: e["file"] for key, e in stated.items()}
    assert {key: len(item.captions) for key, item in found.items()} == {k: e["captions"] for k, e in stated.items()}


def test_msvd_by_the_mapping_by_number_and_untrimmed(msvd: Path, tmp_path: Path) -> None:
    root = link(tmp_path, msvd, "msvd_captions.json.gz")
    link(root / "YouTubeClips", msvd / "clips", "0lh_UWF9ZP4_62_69.avi")
    assert len(load_captioned_set("msvd", root, "train").missing) == 1200
    with pytest.raises(FileNotFoundError, match="untrimmed needs one"):
        load_captioned_set("msvd", root, "train", untrimmed=True)
    write(root / "youtube_mapping.txt", "0lh_UWF9ZP4_62_69 vid98\n")
    write(root / "videos/vid3.MKV", "")
    write(root / "videos/0lh_UWF9ZP4.webm", "")
    found = {item.id: item.path for item in load_captioned_set("msvd", root, "train").items if item.path}
    assert {key: path.name for key, path in found.items()} == {"vid3": "vid3.MKV", "vid98": "0lh_UWF9ZP4_62_69.avi"}
    item = load_captioned_set("msvd", root, "train", untrimmed=True).items[97]
    assert (item.path, item.start_seconds, item.end_seconds) == (root / "videos/0lh_UWF9ZP4.webm", 62.0, 69.0)


EVENTS = {
    "v_a": {"duration": 9.0, "timestamps": [[4.0, 9.0], [0, 4.5]], "sentences": [" He leaves. ", "A man sits."]},
    "v_b": {"duration": 5.0, "timestamps": [[2, 2]], "sentences": ["Nothing."]},
}


def test_activitynet_segments_and_paragraphs(tmp_path: Path) -> None:
    write(tmp_path / "val_1.json", EVENTS)
    write(tmp_path / "val_2.json", {"v_a": {"timestamps": [[0, 9]], "sentences": ["Someone."]}})
    for name in ("v_a.mp4", "b.mkv"):
        write(tmp_path / "videos" / name, "")
    loaded = load_captioned_set("activitynet", tmp_path, "val_1")
    assert [(i.id, i.captions, i.start_seconds, i.end_seconds) for i in loaded.items] == [
        ("v_a#0", ("He leaves.",), 4.0, 9.0),
        ("v_a#1", ("A man sits.",), 0.0, 4.5),
        ("v_b#0", ("Nothing.",), 2.0, 2.0),
    ]
    assert [item.path.name for item in loaded.items] == ["v_a.mp4", "v_a.mp4", "b.mkv"]
    assert loaded.missing == {"v_b#0": "no time from 2 to 2 s"}
    loaded = load_captioned_set("activitynet-paragraphs", tmp_path, "val")
    assert [item.captions for item in loaded.items] == [("A man sits. He leaves.", "Someone."), ("Nothing.",)]
    assert loaded.items[0].end_seconds is None


@pytest.mark.parametrize(
    "entry", [{}, {"timestamps": [[0, 1]], "sentences": []}, {"timestamps": [1], "sentences": [1]}]
)
def test_activitynet_fails(entry: Any, tmp_path: Path) -> None:
    write(tmp_path / "train.json", {"v_x": entry})
    with pytest.raises(ValueError, match="at 'v_x'"):
        load_captioned_set("activitynet", tmp_path, "train")


def lines(*rows: Any) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


def test_ones_own_videos(tmp_path: Path) -> None:
    rows = (
        {"video": "clips/a.mp4", "captions": ["a cat", "one cat"], "split": "test"},
        {"video": "clips/a.mp4", "captions": ["a dog"], "id": "second", "start": 1, "end": 2.5, "split": "test"},
        {"video": "b.mp4", "captions": ["x"], "split": "train"},
    )
    write(tmp_path / "captions.jsonl", lines(*rows, ""))
    write(tmp_path / "clips/a.mp4", "")
    loaded = load_captioned_set("videos", tmp_path, "test")
    assert [(item.id, item.path) for item in loaded.items] == [
        ("clips/a.mp4", tmp_path / "clips/a.mp4"),
        ("second", tmp_path / "clips/a.mp4"),
    ]
    assert (loaded.items[1].start_seconds, loaded.items[1].end_seconds) == (1.0, 2.5)
    assert load_captioned_set("videos", tmp_path / "captions.jsonl").missing == {"b.mp4": "no video file"}


@pytest.mark.parametrize(
    "row, message",
    [
        ({"video": "../a.mp4", "captions": ["x"]}, "must be a path inside"),
        ({"video": "/a.mp4", "captions": ["x"]}, "must be a path inside"),
        ({"video": "c:\\a.mp4", "captions": ["x"]}, "must be a path inside"),
        ({"video": "a\\..\\..\\b.mp4", "captions": ["x"]}, "must be a path inside"),
        ({"video": "a.mp4", "captions": "x"}, "must be a list of strings, got 'x'"),
        ({"video": "a.mp4", "captions": []}, "must be a list of strings"),
        ({"video": "a.mp4", "captions": ["x"], "begin": 1}, "line 1: expected the keys"),
        ({"video": "a.mp4", "captions": ["x"], "start": "1"}, "must be seconds"),
        ({"video": "a.mp4", "captions": ["x"], "end": float("nan")}, "end must be seconds, got nan"),
        ({"video": "a.mp4", "captions": ["x"], "start": 10**400}, "start must be seconds"),
        ({"video": "a.mp4", "captions": ["x"], "split": 1}, "split must be a name, got 1"),
        ("[1]", "line 1: expected the keys"),
        ("1", "line 1: expected the keys"),
        ("{", "line 1 is not JSON"),
    ],
)
def test_ones_own_videos_fail(row: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path / "captions.jsonl", lines(row))
    with pytest.raises(ValueError, match=message):
        load_captioned_set("videos", tmp_path)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"image": "a.jpg", "captions": "a dog"}, "line 1: captions must be a list of strings, got 'a dog'"),
        ({"image": "a.jpg", "captions": None}, "line 1: captions must be a list of strings, got None"),
        ({"image": "../a.jpg", "captions": ["x"]}, "image must be a path inside"),
        ({"image": 1, "captions": ["x"]}, "image must be a path inside"),
        ({"captions": ["x"]}, "line 1: expected the keys image and captions"),
        ({"image": "a.jpg", "captions": ["x"], "split": 2}, "split must be a name, got 2"),
        ("1", "line 1: expected the keys"),
    ],
)
def test_ones_own_photographs_fail(row: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path / "images/a.jpg", "")
    write(tmp_path / "captions.jsonl", lines(row))
    with pytest.raises(ValueError, match=message):
        load_captioned_set("captioned-images", tmp_path)


@pytest.mark.parametrize("name, key", [("captioned-images", "image"), ("videos", "video")])
def test_captions_may_hold_any_text_and_the_file_a_byte_order_mark(name: str, key: str, tmp_path: Path) -> None:
    folder = tmp_path / "images" if key == "image" else tmp_path
    write(folder / "a", "")
    write(folder / "b", "")
    rows = [{key: "a", "captions": ["x\u2028y"], "id": None}, {key: "b", "captions": ["z"], "split": None}]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "captions.jsonl").write_bytes(text.encode("utf-8-sig"))
    loaded = load_captioned_set(name, tmp_path)
    assert [(item.id, item.captions) for item in loaded.items] == [("a", ("x\u2028y",)), ("b", ("z",))]
    (tmp_path / "captions.jsonl").write_bytes(text.encode("utf-16"))
    with pytest.raises(ValueError, match="cannot be read as text"):
        load_captioned_set(name, tmp_path)


def test_the_same_video_twice_needs_ids(tmp_path: Path) -> None:
    row = {"video": "a.mp4", "captions": ["x"]}
    write(tmp_path / "captions.jsonl", lines(row, row))
    with pytest.raises(ValueError, match="1 ids stand for several items"):
        load_captioned_set("videos", tmp_path)


def test_the_hash_is_of_ids_and_captions_in_any_order(tmp_path: Path) -> None:
    rows = [{"video": "a.mp4", "captions": ["x", "y"]}, {"video": "b.mp4", "captions": ["z"]}]

    def sha256(*rows: Any) -> str:
        write(tmp_path / "captions.jsonl", lines(*rows))
        return load_captioned_set("videos", tmp_path).sha256

    whole = sha256(*rows)
    assert sha256(rows[1], {"video": "a.mp4", "captions": ["y", "x"]}) == whole
    assert sha256(*rows[:1]) != whole
    assert sha256(rows[0], {"video": "b.mp4", "captions": ["Z"]}) != whole
    loaded = load_captioned_set("videos", tmp_path).first(1)
    assert (len(loaded.items), loaded.num_in_split, loaded.sha256) == (
        1,
        2,
        sha256(rows[0], {**rows[1], "captions": ["Z"]}),
    )


def test_photographs_are_a_set_of_stills(shared: Path) -> None:
    loaded = load_captioned_set("flickr8k-val", shared / "data/captions/flickr8k")
    assert (loaded.stills, loaded.split, len(loaded.items), loaded.missing) == (True, "val", 1000, {})


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("mscoco", {}, "allowed: flickr8k-val"),
        ("flickr8k-val", {"split": "train"}, "is split 'val', got split 'train'"),
        ("activitynet", {"untrimmed": True}, "untrimmed sources 'activitynet', allowed: msrvtt, msvd"),
    ],
)
def test_load_captioned_set_fails(name: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_captioned_set(name, tmp_path, **options)


@pytest.mark.parametrize("name", [name for name in CAPTIONED_SETS if name != "videos"])
def test_a_folder_without_annotations_fails(name: str, tmp_path: Path) -> None:
    split = {"msrvtt": "test", "msvd": "test", "activitynet": "train", "activitynet-paragraphs": "train"}.get(name)
    with pytest.raises(FileNotFoundError, match="holds no"):
        load_captioned_set(name, tmp_path, split)


def test_of_two_files_with_one_name_the_common_suffix_wins(tmp_path: Path) -> None:
    for name in ("clips/a.avi", "clips/a.mp4", "videos/a.mp4", "videos/b.MOV", "videos/c.txt", "videos/d.mp4/x"):
        write(tmp_path / name, "")
    assert index_videos(tmp_path, (".", "clips", "videos")) == {
        "a": tmp_path / "clips/a.mp4",
        "b": tmp_path / "videos/b.MOV",
    }


def test_an_empty_set_fails() -> None:
    with pytest.raises(ValueError, match="no items"):
        create_set("x", "test", [])
