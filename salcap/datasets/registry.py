"""Sets of captioned clips and photographs by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from salcap.config import check_choice
from salcap.datasets.activitynet import load_activitynet, load_activitynet_paragraphs
from salcap.datasets.captioned_images import load_captioned_images
from salcap.datasets.captioned_videos import CaptionedItem, CaptionedSet, create_set
from salcap.datasets.msrvtt import load_msrvtt
from salcap.datasets.msvd import load_msvd
from salcap.datasets.video_list import load_video_list


def _load_images(root: str | Path, split: str | None, *, name: str, fixed: str | None = None) -> CaptionedSet:
    if fixed is not None and split not in (None, fixed):
        raise ValueError(f"{name} is split {fixed!r}, got split {split!r}; captioned-images takes any")
    images = load_captioned_images(root, fixed or split)
    items = [CaptionedItem(image.image_id, image.path, image.captions) for image in images]
    return create_set(name, fixed or split, items, stills=True)


# name -> loader: (root, split) -> a set; those of `UNTRIMMED` take ``untrimmed`` too
CAPTIONED_SETS: dict[str, Callable[..., CaptionedSet]] = {
    "flickr8k-val": partial(_load_images, name="flickr8k-val", fixed="val"),
    "flickr8k-train": partial(_load_images, name="flickr8k-train", fixed="train"),
    "captioned-images": partial(_load_images, name="captioned-images"),
    "msrvtt": load_msrvtt,
    "msvd": load_msvd,
    "activitynet": load_activitynet,
    "activitynet-paragraphs": load_activitynet_paragraphs,
    "videos": load_video_list,
}
UNTRIMMED = ("msrvtt", "msvd")


def load_captioned_set(
    name: str, root: str | Path, split: str | None = None, *, untrimmed: bool = False
) -> CaptionedSet:
    """Load a split of a named set; files that are missing are told by `CaptionedSet.missing`.

    Args:
        name: of `CAPTIONED_SETS`.
        split: see the set's loader; those of ``videos`` and ``captioned-images`` take all where it is None.
        untrimmed: the files are uncut sources; for the sets of `UNTRIMMED`.

    Raises:
        FileNotFoundError: no annotations under ``root``.
        ValueError: unknown name or split, or annotations of another layout.
    """
    check_choice("dataset", name, tuple(CAPTIONED_SETS))
    if not untrimmed:
        return CAPTIONED_SETS[name](root, split)
    check_choice("dataset with untrimmed sources", name, UNTRIMMED)
    return CAPTIONED_SETS[name](root, split, untrimmed=True)
