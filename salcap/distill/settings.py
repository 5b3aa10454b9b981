"""Settings of a distillation, read from YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelSpec:
    """A network: a fresh one of `salcap.saliency.trainable`, or any backbone of `create_saliency`.

    Attributes:
        options: of a fresh network, or of the backbone's factory.
        checkpoint: folder that ``save_pretrained`` wrote: a trainable network goes on from there.
        feature_layer: of a teacher's sub-module, such as "module.12", whose output (B, C, h, w) are its features;
            None for a trainable network's own.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    feature_layer: str | None = None


@dataclass(frozen=True)
class ImageSource:
    """A folder of images to train on.

    Attributes:
        folder: of the images; with ``fixations`` the data set's root.
        maps: teacher's name -> folder of its maps (see ``salcap saliency-cache``).
        fixations: "osie" or "sun500": people's fixations are the ground truth.
        split: of the fixations.
        most: use the first so many images only; None for all.
    """

    folder: str
    maps: dict[str, str] = field(default_factory=dict)
    fixations: str | None = None
    split: str = "train"
    most: int | None = None


@dataclass(frozen=True)
class ClipSource:
    """A folder of videos to train on.

    Attributes:
        pattern: of the names of the files to read.
        maps: teacher's name -> folder of its maps of ``num_frames`` frames of each video.
    """

    folder: str
    pattern: str = "*"
    maps: dict[str, str] = field(default_factory=dict)
    num_frames: int = 16


@dataclass(frozen=True)
class ValidationSource:
    """A data set that is scored when a stage ends, as ``salcap evaluate --task saliency`` does."""

    dataset: str
    root: str
    split: str = "val"


@dataclass(frozen=True)
class DataSettings:
    """What to train on; relative paths count from the working directory.

    Attributes:
        cache: folder for prepared pixels and teacher features.
        map_size: (height, width) of the ground truth.
        blur: of the fixations, as a share of the image's width.
        crop: smallest side of random crops as a share of the image's.
    """

    cache: str
    images: tuple[ImageSource, ...]
    clips: tuple[ClipSource, ...] = ()
    validation: tuple[ValidationSource, ...] = ()
    map_size: tuple[int, int] = (60, 80)
    blur: float = 0.025
    crop: float = 0.85

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError("images must name at least one source")
        if not 0.3 <= self.crop <= 1.0:
            raise ValueError(f"crop must be 0.3..1, got {self.crop}")


@dataclass(frozen=True)
class StageSettings:
    """One stage of training.

    Attributes:
        losses: method of `salcap.distill.methods` -> its options; ``weight`` is one of them everywhere.
        images: "all", or "labelled" for those with fixations only.
        moving: share of the steps that see clips (videos, and stills in which something moves) instead of stills.
        num_frames: of the clips.
        seen_frames: of them that the student sees, spread evenly; None for all.
        batch_size: frames of a step, over all processes.
        pretrained_rate: learning rate of `StreamModel.pretrained_parameters` as a share of ``learning_rate``.
        labelled_share: of a batch's stills; None as they come.
    """

    losses: dict[str, dict[str, Any]]
    steps: int
    batch_size: int = 64
    learning_rate: float = 2.0e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    images: str = "all"
    moving: float = 0.0
    num_frames: int = 4
    seen_frames: int | None = None
    labelled_share: float | None = None
    pretrained_rate: float = 0.0

    def __post_init__(self) -> None:
        if not self.losses:
            raise ValueError("losses must name at least one method")
        if self.steps < 1 or self.batch_size < 2:
            raise ValueError(f"steps must be at least 1 and batch_size 2, got {self.steps} and {self.batch_size}")
        if self.images not in ("all", "labelled"):
            raise ValueError(f"unknown images {self.images!r}, allowed: all, labelled")
        if self.num_frames < 2 or not 1 <= (self.seen_frames or 1) <= self.num_frames:
            raise ValueError(
                f"num_frames must be at least 2 and seen_frames not more, got {self.num_frames} and {self.seen_frames}"
            )
        if self.images == "labelled" and self.labelled_share is not None:
            raise ValueError("labelled_share does nothing where all images are labelled")
        for name in ("moving", "labelled_share"):
            if not 0.0 <= (getattr(self, name) or 0.0) <= 1.0:
                raise ValueError(f"{name} must be 0..1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Distillation:
    """A whole run; ``output`` gets the log, the checkpoint and, at the end, the student's folder ``model``.

    Attributes:
        teachers: that methods run while training; maps of teachers come with the data.
    """

    output: str
    student: ModelSpec
    data: DataSettings
    stages: tuple[StageSettings, ...]
    teachers: dict[str, ModelSpec] = field(default_factory=dict)
    seed: int = 0
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    checkpoint_steps: int = 500
    mixed_precision: str = "no"
