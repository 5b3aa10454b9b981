"""MSVD, also YouTube2Text (Chen and Dolan, ACL 2011): 1,970 clips with about 40 sentences each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

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

# by number: vid1 ... vid1970 (Venugopalan et al., "Translating videos to natural language", NAACL 2015)
_SPLITS = {"train": range(1, 1201), "val": range(1201, 1301), "test": range(1301, 1971)}
SPLITS = tuple(_SPLITS)
VIDEO_FOLDERS = (".", "clips", "videos", "YouTubeClips")
_CAPTIONS, _IDS, _MAPPING = "msvd_captions.json", "msvd_youtube_ids.json", "youtube_mapping.txt"


class _Source(NamedTuple):
    """Where a clip was cut from."""

    youtube_id: str
    start: str
    end: str

    @property
    def clip_name(self) -> str:
        return "_".join(self)


def load_msvd(root: str | Path, split: str | None, *, untrimmed: bool = False) -> CaptionedSet:
    """Read ``msvd_captions.json`` ({"vid1": [caption, ...]}, plain or .gz) and find the clips.

    The captions' keys, and the clips' file names in `VIDEO_FOLDERS`, are "vid1" or, with ``msvd_youtube_ids.json``
    ({"vid1": {"youtube_id", "start_s", "end_s"}}) or ``youtube_mapping.txt`` ("-4wsuPCjDBc_5_15 vid1") beside the
    captions, "-4wsuPCjDBc_5_15".

    Args:
        split: "train" (vid1 to vid1200), "val" (to vid1300) or "test" (to vid1970). Clips of it for which the file has
            no captions are missing.
        untrimmed: the files are the uncut sources, "-4wsuPCjDBc": clips are cut out of them.

    Raises:
        FileNotFoundError: no captions there, or ``untrimmed`` without one of the files of YouTube ids.
        ValueError: an unknown split, or another layout.
    """
    root = Path(root)
    split = check_split("msvd", split, SPLITS)
    videos = index_videos(root, VIDEO_FOLDERS)
    path = find_file(root, (_CAPTIONS,))
    if path is None:
        raise FileNotFoundError(f"{root} holds no {_CAPTIONS} (plain or .gz)")
    sources = _read_sources(root)
    if untrimmed and not sources:
        raise FileNotFoundError(f"{root} holds no {_IDS} (plain or .gz) and no {_MAPPING}, untrimmed needs one")
    captions = _read_captions(path, {source.clip_name: key for key, source in sources.items()})
    items = []
    for key in (f"vid{number}" for number in _SPLITS[split]):
        source = sources.get(key)
        if untrimmed:
            video = videos.get(source.youtube_id) if source else None
            times = (float(source.start), float(source.end)) if source else (None, None)
        else:
            video, times = videos.get(key) or (videos.get(source.clip_name) if source else None), (None, None)
        items.append(CaptionedItem(key, video, captions.get(key, ()), *times))
    return create_set("msvd", split, items, untrimmed=untrimmed)


def _read_captions(path: Path, keys: dict[str, str]) -> dict[str, tuple[str, ...]]:
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(value, list) for value in content.values()):
        raise ValueError(f'{path}: expected {{"vid1": [caption, ...]}}, got another layout')
    captions: dict[str, tuple[str, ...]] = {str(keys.get(key, key)): tuple(value) for key, value in content.items()}
    known = {f"vid{number}" for numbers in _SPLITS.values() for number in numbers}
    if strange := sorted(captions.keys() - known):
        raise ValueError(f"{path}: {len(strange)} ids are none of vid1 to vid1970: {strange[:3]}")
    return captions


def _read_sources(root: Path) -> dict[str, _Source]:
    """``vid1`` -> its source, of either file; empty where there is none."""
    path = find_file(root, (_IDS, _MAPPING))
    if path is None:
        return {}
    try:
        if path.name.startswith(_MAPPING):
            pairs = (line.split() for line in read_text(path).splitlines() if line.strip())
            found = {key: _Source(*name.rsplit("_", 2)) for name, key in pairs}
        else:
            found = {key: _source_of(entry) for key, entry in read_json(path).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} does not map vid1 ... to YouTube ids: {type(error).__name__}: {error}") from error
    for source in found.values():
        check_id(source.youtube_id, path)
    return found


def _source_of(entry: Any) -> _Source:
    return _Source(entry["youtube_id"], f"{entry['start_s']:g}", f"{entry['end_s']:g}")
