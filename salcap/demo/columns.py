"""What the page shows of a video: a column for each way of captioning it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from salcap.caption import Caption
from salcap.demo.models import Models
from salcap.evaluation.compare import NONE, Arm, Clip
from salcap.evaluation.samples import shrink
from salcap.evaluation.witness import Shown, show
from salcap.outputs import EXPORTS, check_output, export_records
from salcap.records import to_line
from salcap.video import read_frames

ROLES = ("unmodified", "student", "teacher")
EVERY = "all"  # columns of an export
FORMATS = (".jsonl", *EXPORTS)


@dataclass(frozen=True)
class Settings:
    """What was chosen on the page.

    Raises:
        ValueError: no mode.
    """

    model: str
    student: str
    teacher: str
    modes: tuple[str, ...]
    policy: str
    keep_ratio: float
    num_frames: int

    def __post_init__(self) -> None:
        if not self.modes:
            raise ValueError("choose what saliency does: at least one mode")

    def arm(self, role: str) -> Arm:
        """How one of `ROLES` captions."""
        if role == "unmodified":
            return NONE
        backbone = {"student": self.student, "teacher": self.teacher}[role]
        prunes = "prune" in self.modes
        kept = self.keep_ratio if prunes else 1.0
        return Arm(backbone, "+".join(self.modes), self.policy if prunes else None, kept)


@dataclass(frozen=True, eq=False)
class Column:
    """What came of one way of captioning.

    Attributes:
        shown: what the captioner saw; None where it failed.
    """

    role: str
    arm: Arm
    caption: Caption
    shown: Shown | None = None


def open_clip(video: str | Path, settings: Settings) -> Clip:
    """A video whose frames are read once for all columns; its captions name the file without its folder."""
    return Clip(Path(video).name, partial(read_frames, video, settings.num_frames))


def caption_column(models: Models, clip: Clip, settings: Settings, role: str, aspect: float) -> Column:
    """Caption a clip in one way; a column that fails says why in its caption's ``error``, and the others go on.

    Args:
        role: of `ROLES`.
        aspect: width of the clip's pictures over their height.
    """
    arm = settings.arm(role)
    request: dict[str, Any] = {"num_frames": settings.num_frames}
    try:
        pipeline = models.pipeline(settings.model, arm)
        frames = clip.frames(pipeline)
        caption = pipeline.caption(frames, **request)
        shown = Shown(frames, None, None) if arm == NONE else show(pipeline, frames, request)
    except Exception as error:  # whatever a plug-in raises concerns this column only
        failed = Caption(
            None,
            clip.key,
            model=settings.model,
            saliency=arm.saliency,
            mode=arm.mode,
            policy=arm.policy,
            keep_ratio=arm.keep_ratio,
            error=str(error) or type(error).__name__,
            error_class=type(error).__name__,
        )
        return Column(role, arm, failed)
    return Column(role, arm, caption, shrink(shown, aspect, len(shown.frames)))


def write_export(columns: list[Column], role: str, suffix: str, folder: Path) -> Path:
    """Write captions in one of `FORMATS`, of one column or of `EVERY`.

    Raises:
        ValueError: subtitles of several columns.
        ImportError: a format whose optional package is not installed.
    """
    chosen = [column for column in columns if role in (column.role, EVERY)]
    name = columns[0].caption.path or "video"
    path = check_output(folder / f"{Path(name).stem}-{role}{suffix}", FORMATS, len(chosen), overwrite=True)
    records: list[dict[str, Any]] = [
        {"id": name if len(chosen) == 1 else f"{name} {column.role}", **column.caption.to_dict()} for column in chosen
    ]
    if suffix == ".jsonl":
        path.write_bytes(b"".join(map(to_line, records)))
    else:
        export_records(records, path)
    return path
