"""MSR-VTT (Xu et al., CVPR 2016): 10,000 clips with 20 sentences each."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from salcap.datasets.captioned_videos import (
    CaptionedItem,
    CaptionedSet,
    check_id,
    check_split,
    create_set,
    find_file,
    index_videos,
    read_json,
    read_text,
)

# split -> its name in the files, its number of clips
_SPLITS = {"train": ("train", 6513), "val": ("validate", 497), "test": ("test", 2990)}
_PAIRS = 1000  # of 1k-A
SPLITS = (*_SPLITS, "1k-A", "1k-A-pairs")
ANNOTATION_FOLDERS = (".", "annotation", "annotations", "msrvtt_data")
VIDEO_FOLDERS = (".", "clips", "videos", "videos/all", "video", "all", "TrainValVideo", "TestVideo")
_CSV = "MSRVTT_JSFUSION_test.csv"
_CSV_COLUMNS = ["key", "vid_key", "video_id", "sentence"]


def load_msrvtt(root: str | Path, split: str | None, *, untrimmed: bool = False) -> CaptionedSet:
    """Read the standard annotation files and find the clips by their ``video_id``.

    ``train_val_videodatainfo.json`` and ``test_videodatainfo.json``, or both in one as ``MSRVTT_data.json``, plain or
    .gz, are looked for in `ANNOTATION_FOLDERS` under ``root``, clips in `VIDEO_FOLDERS`.

    Args:
        split: "train", "val", "test"; "1k-A", the 1,000 test clips of ``MSRVTT_JSFUSION_test.csv`` (separated by commas
            or by semicolons) with all sentences of the annotations; "1k-A-pairs", the same clips with the one
            sentence that the csv gives each.
        untrimmed: the files are the uncut sources, named by ``video_id``: clips lie from "start time" to "end time".

    Raises:
        FileNotFoundError: no annotations there.
        ValueError: an unknown split, another layout, or a split of another size than MSR-VTT's.
    """
    root = Path(root)
    split = check_split("msrvtt", split, SPLITS)
    if split == "1k-A-pairs":
        if untrimmed:
            raise ValueError("split '1k-A-pairs' is read from a csv that has no times: untrimmed needs '1k-A'")
        items = [CaptionedItem(key, None, (sentence,)) for key, sentence in _read_pairs(root).items()]
    elif split == "1k-A":
        clips = {item.id: item for item in _read_annotations(root, "test", untrimmed)}
        ids = _read_pairs(root)
        if strange := [key for key in ids if key not in clips]:
            raise ValueError(f"{root}: {len(strange)} clips of {_CSV} are no test clips of MSR-VTT: {strange[:3]}")
        items = [clips[key] for key in ids]
    else:
        items = _read_annotations(root, split, untrimmed)
    videos = index_videos(root, VIDEO_FOLDERS)
    return create_set("msrvtt", split, [replace(item, path=videos.get(item.id)) for item in items], untrimmed=untrimmed)


def _read_annotations(root: Path, split: str, timed: bool) -> list[CaptionedItem]:
    """The clips of one split, without their files; ``timed``, with their times in the uncut source."""
    label, expected = _SPLITS[split]
    names = ("test" if split == "test" else "train_val") + "_videodatainfo.json", "MSRVTT_data.json"
    path = find_file(root, names, ANNOTATION_FOLDERS)
    if path is None:
        places = ", ".join(ANNOTATION_FOLDERS)
        raise FileNotFoundError(f"{root} holds no {' or '.join(names)} (plain or .gz) in its folders {places}")
    content = read_json(path)
    try:
        counts = Counter(clip["split"] for clip in content["videos"])
        clips = [clip for clip in content["videos"] if clip["split"] == label]
        captions: dict[str, list[str]] = {check_id(clip["video_id"], path): [] for clip in clips}
        for sentence in content["sentences"]:
            if sentence["video_id"] in captions:
                captions[sentence["video_id"]].append(sentence["caption"])
        items = [
            CaptionedItem(clip["video_id"], None, tuple(captions[clip["video_id"]]), *(_times(clip) if timed else ()))
            for clip in clips
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no MSR-VTT annotation file: {type(error).__name__}: {error}") from error
    if len(items) != expected:
        raise ValueError(f"{path}: split {split} of MSR-VTT has {expected} clips, this file has {dict(counts)}")
    return items


def _times(clip: dict[str, Any]) -> tuple[float, float]:
    return float(clip["start time"]), float(clip["end time"])


def _read_pairs(root: Path) -> dict[str, str]:
    """Of the 1k-A csv: id -> sentence."""
    path = find_file(root, (_CSV,), ANNOTATION_FOLDERS)
    if path is None:
        raise FileNotFoundError(f"{root} holds no {_CSV} in its folders {', '.join(ANNOTATION_FOLDERS)}")
    header, *lines = read_text(path).splitlines()
    separator = ";" if ";" in header else ","
    if header.strip().split(separator) != _CSV_COLUMNS:
        raise ValueError(f"{path}: expected the columns {', '.join(_CSV_COLUMNS)}, got {header!r}")
    rows = [row for row in csv.reader(lines, delimiter=separator) if row]
    if bad := [row for row in rows if len(row) != len(_CSV_COLUMNS)]:
        raise ValueError(f"{path}: expected {len(_CSV_COLUMNS)} columns in every line, got {bad[0]}")
    pairs = {check_id(row[2], path): row[3] for row in rows}
    if not len(rows) == len(pairs) == _PAIRS:
        raise ValueError(f"{path}: 1k-A has {_PAIRS} clips, this file has {len(pairs)} in {len(rows)} lines")
    return pairs
