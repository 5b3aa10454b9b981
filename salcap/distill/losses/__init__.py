"""The five distillation methods, one file each: torch modules and functions that know nothing of the training loop."""

from salcap.distill.losses.collaborative import CollaborativeLoss, collaborative_loss
from salcap.distill.losses.coupled import CoupledLoss, fused_loss
from salcap.distill.losses.generative import (
    AttentionHead,
    ConditionalVae,
    GenerativeDistillation,
    cvae_loss,
    weight_features,
)
from salcap.distill.losses.see_little import SeeLittleLoss, choose_frames
from salcap.distill.losses.statistics import FeatureStatisticsLoss

__all__ = [
    "AttentionHead",
    "CollaborativeLoss",
    "ConditionalVae",
    "CoupledLoss",
    "FeatureStatisticsLoss",
    "GenerativeDistillation",
    "SeeLittleLoss",
    "choose_frames",
    "collaborative_loss",
    "cvae_loss",
    "fused_loss",
    "weight_features",
]
