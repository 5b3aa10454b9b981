"""Files of captions: references and candidates in the forms that data sets, challenges and salcap write."""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from salcap.config import check_choice

FORMS = (
    "JSON {id: caption or [captions]}, results as a list of {image_id or video_id, caption}, COCO's or MSR-VTT's"
    " annotation file, or JSON lines (.jsonl) of salcap caption, all of them gzipped or not"
)
_IDS = (
    "image_id",
    "video_id",
    "id",
    "video",
)  # the first that a row has; COCO's annotations have an ``id`` of their own
_TEXTS = ("caption", "captions")
_LISTS = ("annotations", "sentences", "results", "result", "predictions")  # what holds the rows

logger = logging.getLogger(__name__)

Captions = dict[str, list[str]]


def load_references(path: str | Path, split: str | None = None) -> Captions:
    """Read the captions that people wrote, id -> captions; see `load_captions`."""
    return load_captions(path, "references", split)


def load_candidates(path: str | Path) -> dict[str, str]:
    """Read the captions to score, id -> caption; see `load_captions`.

    Raises:
        ValueError: also if an id has several captions.
    """
    captions = load_captions(path, "candidates")
    for key, texts in captions.items():
        if len(texts) != 1:
            raise ValueError(f"{path}: candidate {key!r} must be one caption, got {len(texts)}")
    return {key: texts[0] for key, texts in captions.items()}


def load_captions(path: str | Path, part: str | None = None, split: str | None = None) -> Captions:
    """Read captions from a file in one of these `FORMS`.

    Args:
        part: what to take of a file that holds {"references": ..., "candidates": ...}.
        split: what to take of a file whose videos or lines have a split, such as MSR-VTT's; None takes all.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another form, a caption that is not a string, a record of a video that failed, or an unknown split.
    """
    content = _read_json(Path(path))
    if isinstance(content, dict) and content.keys() == {"references", "candidates"}:
        if part not in content:
            raise ValueError(f"{path} holds references and candidates; say which, got part {part!r}")
        content = content[part]
    captions: Captions = {}
    splits: dict[str, str | None] | None = None  # id -> split; None if the file has no splits
    held = next((key for key in _LISTS if isinstance(content, dict) and _is_rows(content.get(key))), None)
    if held is not None:
        videos = content.get("videos")
        if _is_rows(videos) and all("video_id" in video for video in videos):
            splits = {str(video["video_id"]): video.get("split") for video in videos}
            captions = {key: [] for key in splits}
        content = content[held]
    elif isinstance(content, dict) and _is_one_row(content):
        content = [content]
    if isinstance(content, list):
        if splits is None and any(isinstance(row, dict) and "split" in row for row in content):
            splits = {}
            for row in content:
                splits[_row_id(row, path)] = row.get("split")
        for row in content:
            captions.setdefault(_row_id(row, path), []).extend(_row_texts(row, path))
    elif isinstance(content, dict):
        try:
            captions = {key: caption_texts(_plain(value), f"{path}: {key}") for key, value in content.items()}
        except ValueError as error:
            raise ValueError(f"{error}; allowed: {FORMS}") from None
    else:
        raise ValueError(f"{path}: expected captions by id, got {type(content).__name__}; allowed: {FORMS}")
    return _take_split(captions, splits, split, path)


def match_ids(references: Mapping[str, Any], candidates: Mapping[str, str]) -> Mapping[str, str]:
    """The candidates by the references' ids, if their own ids are paths of files that have these names.

    ``salcap caption`` names the videos of a folder by their paths (``clips/video7.mp4``), data sets without folder and
    suffix (``video7``). A warning says so. The candidates are returned as they are if any of them has a reference, or
    if two files have the same name.
    """
    stems = {PurePath(key).stem: text for key, text in candidates.items()}
    if candidates.keys() & references.keys() or len(stems) < len(candidates) or not stems.keys() & references.keys():
        return candidates
    first = next(iter(candidates))
    logger.warning(
        "the candidates' ids are paths, the references' are not: folder and suffix are left out, as in %r for %r",
        PurePath(first).stem,
        first,
    )
    return stems


def caption_texts(value: Any, where: str) -> list[str]:
    """One caption or several as a list of strings."""
    texts = list(value) if isinstance(value, (list, tuple)) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{where}: a caption must be a string, got {text!r}")
    return texts


def _read_json(path: Path) -> Any:
    """The content of a file of JSON, or the list of a file of JSON lines."""
    raw = path.read_bytes()
    lines = {".jsonl", ".ndjson"} & {suffix.lower() for suffix in path.suffixes[-2:]}
    try:
        raw = gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw
        if not lines:
            try:
                return json.loads(raw, object_pairs_hook=_unique)
            except json.JSONDecodeError as error:
                if not error.msg.startswith("Extra data"):
                    raise
        return _parse_lines(raw.decode(json.detect_encoding(raw), "surrogatepass"))
    except (ValueError, RecursionError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not JSON: {error}; allowed: {FORMS}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which Python would let the last of several equal keys win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        double = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"the key {double!r} comes twice in one object")
    return found


def _parse_lines(text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}, {error.msg}, in {line[:80]!r}") from error
    return rows


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _is_one_row(content: Mapping[str, Any]) -> bool:
    """Whether a mapping is one line of records or results, rather than captions by id."""
    return "caption" in content and bool({"image_id", "video_id", "error_class"} & content.keys())


def _row_id(row: Any, path: str | Path) -> str:
    name = next((row[key] for key in _IDS if row.get(key) is not None), None) if isinstance(row, dict) else None
    if name is None or not any(key in row for key in _TEXTS):
        raise ValueError(
            f"{path}: expected items with image_id, video_id or id and caption, got {row!r}; allowed: {FORMS}"
        )
    return str(int(name) if isinstance(name, float) and name.is_integer() else name)  # pandas makes ids floats


def _row_texts(row: Mapping[str, Any], path: str | Path) -> list[str]:
    value = next(row[key] for key in _TEXTS if key in row)
    if value is None and row.get("error_class"):
        raise ValueError(
            f"{path}: {_row_id(row, path)!r} has no caption, as it failed ({row['error_class']}): caption it again with"
            " salcap caption --retry-failed, or leave it out of both files"
        )
    return caption_texts(value, f"{path}: {_row_id(row, path)}")


def _plain(value: Any) -> Any:
    """A caption, or each of a list, without the {"caption": ...} in which pycocoevalcap's examples have it."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value["caption"] if isinstance(value, dict) and "caption" in value else value


def _take_split(
    captions: Captions, splits: Mapping[str, str | None] | None, split: str | None, path: str | Path
) -> Captions:
    names = sorted({name for name in (splits or {}).values() if name is not None})
    if split is None:
        if len(names) > 1:
            logger.warning(
                "%s holds the splits %s; all of them are taken, as no split is given", path, ", ".join(names)
            )
        return captions
    if splits is None or not names:
        raise ValueError(f"{path} has no splits, got split {split!r}")
    split = "validate" if split == "val" and "val" not in names and "validate" in names else split  # as MSR-VTT says
    check_choice(f"split of {path}", split, names)
    return {key: texts for key, texts in captions.items() if splits.get(key) == split}
