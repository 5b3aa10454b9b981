"""Settings of a fine-tuning run, read from YAML."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from salcap.config import Weighting, check_choice
from salcap.datasets.registry import CAPTIONED_SETS
from salcap.sampling import FRAME_CHOICES


@dataclass(frozen=True)
class ClipSource:
    """A split of captioned clips; relative paths count from the working directory.

    Attributes:
        dataset, root, split, untrimmed: see `salcap.datasets.registry.load_captioned_set`.
        limit: its first clips only.
        allow_missing: go without clips that have no file; else they are an error.
    """

    dataset: str
    root: str
    split: str | None = None
    untrimmed: bool = False
    limit: int | None = None
    allow_missing: bool = False

    def __post_init__(self) -> None:
        check_choice("dataset", self.dataset, tuple(CAPTIONED_SETS))
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}")


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters in place of all weights; see ``peft.LoraConfig``, whose defaults these are.

    Attributes:
        target_modules: names of layers or their ends, or "all-linear"; None where peft knows the architecture.
    """

    rank: int = 8
    alpha: int = 8
    target_modules: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1:
            raise ValueError(f"rank and alpha must be at least 1, got {self.rank} and {self.alpha}")


@dataclass(frozen=True)
class SeeLittle:
    """The captioner as it was, reading all frames, teaches itself to read few of them: see `SeeLittleTeacher`.

    Attributes:
        num_frames: that the student reads, of the run's ``num_frames``.
        frames: how they are chosen: "uniform", or "saliency" (`salcap.sampling.saliency_indices`).
        prediction, representation: weights of the two losses beside cross-entropy; both 0: it learns without a teacher.
    """

    num_frames: int
    frames: str = "saliency"
    prediction: float = 0.01
    representation: float = 0.001

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"num_frames of see_little must be at least 1, got {self.num_frames}")
        check_choice("frames", self.frames, FRAME_CHOICES)
        for name in ("prediction", "representation"):
            if not 0.0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"{name} must be >= 0 and finite, got {value}")


@dataclass(frozen=True)
class FineTuning:
    """A whole run; ``output`` gets the log, the checkpoint and the captioner's folder ``model``.

    Attributes:
        captioner, revision: where it starts from, see `salcap.captioners.load_captioner`.
        train, validation: captions to learn from, one of each clip's an epoch, drawn; and to be scored after each
            epoch. With ``validation`` the epoch of the best CIDEr is kept, else the last one.
        num_frames: of each clip; None for the captioner's default. A GIT for photographs gets new time embeddings.
        saliency: backbone; None for the captioner's default.
        weighting: what its maps do, in training and, unless told otherwise, in use.
        keep_ratios: each step draws one of them, in the place of the weighting's own.
        see_little: learn to read few of the frames.
        frozen: beginnings of the names of parameters that stay as they are, such as "encoder.trunk".
        prompt: what the captioner is asked, in training and, unless told otherwise, in use; None: its family's own.
        learned_gain: learn a factor of the weighting's strength, one number.
        batch_size: clips of a step, over all processes.
        accumulation_steps: parts that each process's share of a batch is split into, to save memory.
        clean_captions: learn them in lower case and without punctuation, as the bundled captioner writes.
        max_caption_tokens: longer captions are cut, and none longer is written in validation.
        mixed_precision: "no" or "bf16".
        patience: epochs without a better CIDEr after which it stops; None: never.
        checkpoint_steps: between checkpoints; there is one after each epoch too.
        num_readers: threads that read clips ahead.
    """

    output: str
    captioner: str
    train: ClipSource
    validation: ClipSource | None = None
    revision: str | None = None
    num_frames: int | None = None
    saliency: str | None = None
    weighting: Weighting = field(default_factory=Weighting)
    keep_ratios: tuple[float, ...] = ()
    see_little: SeeLittle | None = None
    frozen: tuple[str, ...] = ()
    prompt: str | None = None
    learned_gain: bool = False
    lora: LoraSettings | None = None
    epochs: int = 5
    batch_size: int = 16
    accumulation_steps: int = 1
    learning_rate: float = 2.0e-5
    warmup_steps: int = 100
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    clean_captions: bool = False
    max_caption_tokens: int = 40
    mixed_precision: str = "no"
    patience: int | None = None
    checkpoint_steps: int = 500
    num_readers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        modes, weighting = set(self.weighting.modes), self.weighting
        for name in ("epochs", "batch_size", "accumulation_steps", "max_caption_tokens", "patience", "checkpoint_steps",
                     "num_readers"):  # fmt: skip
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        check_choice("mixed_precision", self.mixed_precision, ("no", "bf16"))
        if self.saliency is not None and weighting.mode == "none":
            raise ValueError(f"saliency {self.saliency!r} does nothing in mode 'none': give the weighting a mode")
        if any(not 0.0 < ratio <= 1.0 for ratio in self.keep_ratios):
            raise ValueError(f"keep_ratios must be in (0, 1], got {list(self.keep_ratios)}")
        if self.keep_ratios and "prune" not in modes:
            raise ValueError(f"keep_ratios do nothing in mode {weighting.mode!r}: it needs 'prune'")
        if self.learned_gain and (not modes & {"scale", "bias"} or weighting.strength == 0):
            raise ValueError(
                "learned_gain needs mode 'scale' or 'bias' and a strength above 0,"
                f" got mode {weighting.mode!r} and strength {weighting.strength}"
            )
        if self.see_little is not None:
            if self.see_little.frames == "saliency" and weighting.mode == "none":
                raise ValueError("see_little chooses frames by 'saliency', which needs maps: give the weighting a mode")
            if "zoom" in modes:
                raise ValueError("see_little chooses among frames, not among the views of mode 'zoom'")
            if self.num_frames is None or self.num_frames <= self.see_little.num_frames:
                few = self.see_little.num_frames
                raise ValueError(
                    f"see_little reads {few} frames of more: num_frames must be above, got {self.num_frames}"
                )
        if self.patience is not None and self.validation is None:
            raise ValueError(f"patience {self.patience} needs validation, whose CIDEr it waits for")
