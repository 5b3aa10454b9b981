"""What a saliency map does to the visual tokens: pool it to the patch grid, then scale, bias or prune.

Pure tensor functions. Letters in shapes: B clips, F frames, P prefix tokens, N = gh * gw patches, D width.
"""

from salcap.weighting.pooling import pool_to_grid, relative_saliency
from salcap.weighting.scaling import attention_bias, scale_patches
from salcap.weighting.selection import PatchSelection, prune_patches, recorded_selections, select_patches

__all__ = [
    "PatchSelection",
    "attention_bias",
    "pool_to_grid",
    "prune_patches",
    "recorded_selections",
    "relative_saliency",
    "scale_patches",
    "select_patches",
]
