"""Where people look: backbones that turn frames into log-density maps, and their registry."""

from salcap.saliency.adapter import ImageNetworkSaliency, OnnxSaliency, TorchSaliency
from salcap.saliency.density import normalise_log_density, resize_log_density
from salcap.saliency.model import SaliencyModel
from salcap.saliency.registry import (
    check_registered_name,
    check_saliency,
    create_saliency,
    list_saliency,
    register_saliency,
    saliency_errors,
)

__all__ = [
    "ImageNetworkSaliency",
    "OnnxSaliency",
    "SaliencyModel",
    "TorchSaliency",
    "check_registered_name",
    "check_saliency",
    "create_saliency",
    "list_saliency",
    "normalise_log_density",
    "register_saliency",
    "resize_log_density",
    "saliency_errors",
]
