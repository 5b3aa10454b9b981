"""Settings of a captioner training run, read from YAML."""

from __future__ import annotations

from dataclasses import dataclass, field

from salcap.config import Weighting


@dataclass(frozen=True)
class DataSettings:
    """Where captions and images lie; relative paths count from the working directory.

    Attributes:
        images: captioned-image folders to train on; a folder without splits is used whole.
        validation: captioned-image folder whose split "val" is scored after every epoch.
        density_maps: folder of teacher maps of the training images (see `iter_density_maps`).
        sentences: caption files whose training text the decoder is pretrained on.
        cache: where trunk features are kept.
    """

    images: tuple[str, ...]
    validation: str
    cache: str
    density_maps: str | None = None
    sentences: tuple[str, ...] = ()
    most_sentences_per_video: int = 8
    num_views: int = 5


@dataclass(frozen=True)
class ModelSettings:
    """Size of the captioner."""

    trunk: str = "lite2"
    image_size: int = 224
    hidden_size: int = 256
    encoder_layers: int = 2
    decoder_layers: int = 3
    heads: int = 4
    intermediate_size: int = 512
    dropout: float = 0.1
    vocab_size: int = 4000
    most_tokens: int = 32


@dataclass(frozen=True)
class StageSettings:
    """One stage: "language" (decoder alone), "caption" (cross-entropy) or "reward" (self-critical CIDEr).

    Attributes:
        batch_size: sentences in "language", images elsewhere; over all processes.
        trunk_rate: learning rate of the trunk's blocks behind stride 16 as a share of ``learning_rate``; 0 freezes
            them. Those before are always frozen.
        captions: captions of each image that a step sees in "caption", or that are sampled in "reward".
    """

    kind: str
    epochs: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 100
    label_smoothing: float = 0.0
    captions: int = 5
    trunk_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("language", "caption", "reward"):
            raise ValueError(f"unknown stage kind {self.kind!r}, allowed: language, caption, reward")
        least = {"epochs": 1, "batch_size": 1, "captions": 2 if self.kind == "reward" else 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} of a {self.kind} stage must be at least {low}, got {getattr(self, name)}")


@dataclass(frozen=True)
class SaliencyDefaults:
    """How the finished captioner is used unless told otherwise; see `salcap.config.Weighting`."""

    backbone: str
    mode: str
    policy: str = "stratified"
    keep_ratio: float = 1.0
    strength: float = 0.5

    def __post_init__(self) -> None:
        Weighting(self.mode, self.policy, self.keep_ratio, strength=self.strength)


@dataclass(frozen=True)
class CaptionerTraining:
    """A whole run; ``output`` gets the log, the checkpoint and, at the end, the captioner."""

    output: str
    data: DataSettings
    stages: tuple[StageSettings, ...]
    saliency: SaliencyDefaults
    model: ModelSettings = field(default_factory=ModelSettings)
    seed: int = 0
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    checkpoint_steps: int = 100
    validation_images: int = 400
    mixed_precision: str = "no"
