"""ActivityNet Captions (Krishna et al., ICCV 2017): about 20,000 long videos, a sentence for each of their events."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from salcap.datasets.captioned_videos import (
    CaptionedItem,
    CaptionedSet,
    check_id,
    check_split,
    create_set,
    find_file,
    index_videos,
    read_json,
)

SPLITS = ("train", "val_1", "val_2")  # val_1 and val_2 describe the same videos, cut by different people
PARAGRAPH_SPLITS = (*SPLITS, "val")
ANNOTATION_FOLDERS = (".", "captions", "annotations")
VIDEO_FOLDERS = (
    *(".", "videos", "clips", "train", "val", "test", "train_val"),
    *("v1-2/train", "v1-2/val", "v1-2/test", "v1-3/train_val", "v1-3/test"),
)


class _Event(NamedTuple):
    start: float
    end: float
    sentence: str


def load_activitynet(root: str | Path, split: str | None) -> CaptionedSet:
    """Every segment of every video, with its one sentence as the reference; ids are "v_abc#0", "v_abc#1", ...

    ``train.json``, ``val_1.json`` and ``val_2.json`` ({id: {duration, timestamps, sentences}}, plain or .gz) are looked
    for in `ANNOTATION_FOLDERS` under ``root``, videos ("v_abc" or "abc") in `VIDEO_FOLDERS`.

    Args:
        split: of `SPLITS`.

    Raises:
        FileNotFoundError: no annotations there.
        ValueError: an unknown split, or another layout.
    """
    root, split = Path(root), check_split("activitynet", split, SPLITS)
    events = _read_annotations(root, split)
    videos = index_videos(root, VIDEO_FOLDERS)
    items = [
        CaptionedItem(f"{key}#{number}", _find(videos, key), (event.sentence,), event.start, event.end)
        for key, parts in events.items()
        for number, event in enumerate(parts)
    ]
    return create_set("activitynet", split, items)


def load_activitynet_paragraphs(root: str | Path, split: str | None) -> CaptionedSet:
    """Every video as a whole, with all its sentences, by their start, as one reference; see `load_activitynet`.

    Args:
        split: of `SPLITS`, or "val": the videos of val_1 or val_2, with a reference of each that has one.
    """
    root, split = Path(root), check_split("activitynet-paragraphs", split, PARAGRAPH_SPLITS)
    paragraphs: dict[str, list[str]] = {}
    for part in ("val_1", "val_2") if split == "val" else (split,):
        for key, events in _read_annotations(root, part).items():
            paragraphs.setdefault(key, []).append(" ".join(event.sentence for event in sorted(events)))
    videos = index_videos(root, VIDEO_FOLDERS)
    items = [CaptionedItem(key, _find(videos, key), tuple(texts)) for key, texts in paragraphs.items()]
    return create_set("activitynet-paragraphs", split, items)


def _find(videos: Mapping[str, Path], key: str) -> Path | None:
    return videos.get(key) or videos.get(key.removeprefix("v_"))


def _read_annotations(root: Path, split: str) -> dict[str, list[_Event]]:
    """Of one file: id -> events in the file's order."""
    path = find_file(root, (f"{split}.json",), ANNOTATION_FOLDERS)
    if path is None:
        places = ", ".join(ANNOTATION_FOLDERS)
        raise FileNotFoundError(f"{root} holds no {split}.json (plain or .gz) in its folders {places}")
    content, key = read_json(path), ""
    try:
        found = {}
        for key, entry in content.items():
            parts = zip(entry["timestamps"], entry["sentences"], strict=True)
            found[check_id(key, path)] = [
                _Event(float(start), float(end), text.strip()) for (start, end), text in parts
            ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected {{id: {{timestamps: [[start, end], ...], sentences: [...]}}}}, at {key!r}"
            f" {type(error).__name__}: {error}"
        ) from error
    return found
