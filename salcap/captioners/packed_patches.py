"""What families share whose vision encoder reads the patches of all frames as one packed sequence (Qwen's towers).

Frames keep their aspect ratio, so clips differ in their grids. A pruned frame is a shorter stretch of the sequence:
the encoder takes positions and the lengths of stretches as they are given to it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, SizeDict
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from salcap.captioners.family import ClipBatch
from salcap.captioners.multimodal import ClipFeatures, MultimodalCaptioner
from salcap.captioners.patch_groups import from_groups
from salcap.captioners.preprocessing import FramePreprocessor
from salcap.captioners.visual_tokens import ClipTokens
from salcap.frames import Frames


class PackedFrames(FramePreprocessor):
    """Frames through the image processor, one by one, then laid together in time as the video processor does it.

    Size and pixel limits count as they do for the family's video processor.

    Args:
        image_processor: with the checkpoint's settings for videos, see `with_settings`.
    """

    merge_size: int | None = None  # side of a group in patches; None takes the image processor's

    def __call__(self, frames: Frames) -> Tensor:
        """Patches (T, gh, gw, side * side, values) of T spans of frames; those of a group in raster order."""
        processor: Any = self.image_processor
        options: dict[str, Any] = {} if self.merge_size is None else {"merge_size": self.merge_size}
        images: list[Any] = list(frames.pixels.cpu())
        backend = TorchvisionBackend if isinstance(processor, TorchvisionBackend) else PilBackend
        if backend is PilBackend:
            images = [image.numpy() for image in images]
        if processor.do_resize:
            height, width = self.frame_size(len(frames), *frames.pixels.shape[-2:])
            size = SizeDict(height=height, width=width)
            images = [backend.resize(processor, image, size, resample=processor.resample) for image in images]
        options |= {"do_resize": False, "input_data_format": "channels_first", "return_tensors": "pt"}
        made = processor(images, **options)
        rows, columns = (int(patches) // self.side for patches in made["image_grid_thw"][0, 1:])
        # the image processor repeats each frame over the span: take each frame's own share of it
        patches = made["pixel_values"].unflatten(-1, (3, self.span, -1))[:, :, 0].unflatten(0, (len(frames), -1))
        patches = torch.cat([patches, patches[-1:].expand(-len(frames) % self.span, -1, -1, -1)])
        patches = patches.unflatten(0, (-1, self.span)).permute(0, 2, 3, 1, 4).flatten(2)
        return patches.unflatten(1, (rows, columns, -1))

    def frame_size(self, num_frames: int, height: int, width: int) -> tuple[int, int]:
        """Height and width of each of a clip's frames after resizing: here as Qwen2-VL's video processor has it."""
        processor: Any = self.image_processor
        factor, least, most = self.factor, *self.pixel_limits
        if getattr(processor, "cap_pixels_per_frame", None):
            budget = int(processor.max_video_tokens * factor**2 * 0.9)
            most = max(min(most, budget * self.span // num_frames), int(least * 1.05))
        return smart_resize(height, width, factor=factor, min_pixels=least, max_pixels=most)

    @property
    def factor(self) -> int:
        """Side of a group in pixels."""
        return self.image_processor.patch_size * self.side

    @property
    def pixel_limits(self) -> tuple[int, int]:
        """The least and most pixels; the family says of what."""
        size = dict(self.image_processor.size)
        if not size.get("shortest_edge") or not size.get("longest_edge"):
            raise ValueError(f"the size of the video processor must have shortest_edge and longest_edge, got {size}")
        return size["shortest_edge"], size["longest_edge"]

    @property
    def side(self) -> int:
        """Side of a group in patches, which become one token."""
        return self.merge_size or self.image_processor.merge_size

    @property
    def span(self) -> int:
        """Frames that share their tokens."""
        return self.image_processor.temporal_patch_size

    @property
    def read_options(self) -> dict[str, Any]:
        return {}

    def seen_box(self, height: int, width: int) -> tuple[float, float, float, float]:
        return 0.0, 0.0, 1.0, 1.0


class PackedCaptioner(MultimodalCaptioner):
    """Base: implement `run_tower` and `expand`. "prune" drops groups of patches before the vision encoder."""

    preprocessor = PackedFrames
    preprocess: PackedFrames
    # of Qwen2-VL's video processor, for what a checkpoint's settings leave out
    video_defaults: ClassVar[Mapping[str, Any]] = {
        "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28},
        "image_mean": OPENAI_CLIP_MEAN,
        "image_std": OPENAI_CLIP_STD,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "max_video_tokens": 128000,
    }

    @abstractmethod
    def run_tower(self, patches: Tensor, grid_thw: Tensor, **precomputed: Tensor) -> Tensor:
        """Packed patches (n, values) to tokens (n / side / side, D); ``precomputed`` as in vision_utils."""

    def look(self, batch: ClipBatch, prompt: str) -> tuple[list[ClipTokens], list[ClipFeatures]]:
        grids = [(pixels.shape[1], pixels.shape[2]) for pixels in batch.clip_pixels]
        plans = [self.plan_clip(batch, i, grid, span=self.preprocess.span) for i, grid in enumerate(grids)]
        patches = torch.cat([pixels.flatten(0, 3) for pixels in batch.clip_pixels])
        if any(plan.prunes for plan in plans):
            tokens = self.encode_pruned(batch, plans, patches)
        else:
            tokens = self.run_tower(patches, self.grid_thw(batch))
        frames = iter(tokens.split([count for plan in plans for count in plan.counts]))
        return plans, [[next(frames) for _ in plan.counts] for plan in plans]

    def encode_pruned(self, batch: ClipBatch, plans: Sequence[ClipTokens], patches: Tensor) -> Tensor:
        """Run the vision encoder on the groups that are kept, each at its place in the frame."""
        places = self.pruned_places(batch, plans)
        return self.run_tower(self.prune_patches(batch, plans, patches), **places)

    def pruned_places(self, batch: ClipBatch, plans: Sequence[ClipTokens]) -> dict[str, Tensor]:
        """Where the kept patches are, for the encoder: every group stands as a frame of its own in ``grid_thw``.

        A coarse token's patches lie at the mean of the places of those it stands for.
        """
        side, device = self.preprocess.side, self.device
        whole = []
        for pixels in batch.clip_pixels:
            rows, columns = pixels.shape[1] * side, pixels.shape[2] * side
            place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float().to(device)
            place = place.unflatten(0, (rows // side, side, columns // side, side)).transpose(1, 2)
            whole.append(place.reshape(1, -1, 2).expand(len(pixels), -1, -1).flatten(0, 1))
        place = self.prune_patches(batch, plans, torch.cat(whole))
        lengths = torch.tensor([0, *(count * side**2 for plan in plans for count in plan.counts)], device=device)
        return {
            "grid_thw": torch.tensor([[len(place) // side**2, side, side]], device=device),
            "position_ids": place,
            "cu_seqlens": lengths.cumsum(0, dtype=torch.int32),
        }

    def prune_patches(self, batch: ClipBatch, plans: Sequence[ClipTokens], rows: Tensor) -> Tensor:
        """Anything that has a row for each patch (n, d), packed, to the rows of what the plans keep."""
        side = self.preprocess.side
        clips = rows.split([pixels.shape[:4].numel() for pixels in batch.clip_pixels])
        kept = []
        for plan, pixels, clip in zip(plans, batch.clip_pixels, clips, strict=True):
            groups = clip.reshape(len(pixels), -1, side**2 * rows.shape[-1])
            kept += [from_groups(plan.prune(frame, row), side) for frame, row in enumerate(groups)]
        return torch.cat(kept)

    def grid_thw(self, batch: ClipBatch) -> Tensor:
        """(B, 3): spans of frames, rows and columns of patches."""
        side = self.preprocess.side
        grids = [[p.shape[0], p.shape[1] * side, p.shape[2] * side] for p in batch.clip_pixels]
        return torch.tensor(grids, device=self.device)
