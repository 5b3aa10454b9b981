"""SaliencyCaptioner: the way of a video from file to caption."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from salcap.caption import Caption
from salcap.captioners.base import Captioner, GeneratedText
from salcap.config import Weighting
from salcap.frames import Frames
from salcap.saliency import SaliencyModel, create_saliency
from salcap.sampling import take_frames
from salcap.video import VideoDecodeError, read_frames

DEFAULT_NUM_FRAMES = 8

Video = str | PathLike[str] | Frames | np.ndarray | Tensor


class SaliencyCaptioner:
    """Captions videos: reads frames, predicts where people look, lets the captioner look there.

    Args:
        captioner: see `salcap.captioners.load_captioner`.
        saliency: the backbone; not run where ``weighting`` does not need a map.
        weighting: what the maps do to the captioner's visual tokens.

    Raises:
        ValueError: the captioner cannot honour the weighting's mode.
    """

    def __init__(self, captioner: Captioner, saliency: SaliencyModel, weighting: Weighting) -> None:
        unknown = sorted(set(weighting.modes) - captioner.modes)
        if unknown:
            raise ValueError(
                f"{captioner.name} cannot honour mode {'+'.join(unknown)!r}; it allows {sorted(captioner.modes)}"
            )
        self.captioner, self.saliency, self.weighting = captioner, saliency, weighting

    @classmethod
    def from_pretrained(
        cls,
        model: Any = "salcap-mini",
        processor: Any = None,
        *,
        saliency: str | SaliencyModel | None = None,
        mode: str | None = None,
        policy: str | None = None,
        keep_ratio: float | None = None,
        scope: str | None = None,
        strength: float | None = None,
        seed: int | None = None,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        trust_remote_code: bool = False,
    ) -> SaliencyCaptioner:
        """Load a captioner with a saliency backbone in front.

        Args:
            model: "salcap-mini" (bundled), a hub id, a local folder, or a loaded model (then give ``processor`` too).
            saliency: a registered backbone's name or an instance; None takes the captioner's default.
            mode, policy, keep_ratio, scope, strength, seed: see `salcap.config.Weighting`; None takes the
                captioner's default. A ``keep_ratio`` below 1 alone adds "prune" to the default mode.
        """
        from salcap.captioners import load_captioner

        captioner = load_captioner(
            model, processor, revision=revision, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )
        if mode is None:
            mode = captioner.default_weighting.mode
            if keep_ratio is not None and keep_ratio < 1 and "prune" not in mode.split("+"):
                mode = "prune" if mode == "none" else f"{mode}+prune"
        elif "prune" not in mode.split("+") and keep_ratio is None:
            keep_ratio = 1.0  # the default budget belongs to the default mode
        given: dict[str, Any] = {
            "mode": mode,
            "policy": policy,
            "keep_ratio": keep_ratio,
            "scope": scope,
            "strength": strength,
            "seed": seed,
        }
        weighting = replace(captioner.default_weighting, **{k: v for k, v in given.items() if v is not None})
        backbone = captioner.default_saliency if saliency is None else saliency
        if isinstance(backbone, str):
            backbone = create_saliency(backbone)
        return cls(captioner, backbone if device is None else backbone.to(device), weighting)

    def caption(
        self,
        video: Video,
        num_frames: int | None = None,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        **generation: Any,
    ) -> Caption:
        """Caption one video.

        Args:
            video: a path, `Frames`, or uint8 RGB frames (T, H, W, 3) taken to be one second apart.
            num_frames: frames to look at, spread evenly over the clip by time; None means 8, or as many as the
                model takes where that is fewer.
            start_seconds, end_seconds: the part of the video to caption; None means from its start, to its end.
            generation: keyword arguments of ``transformers``' generate (num_beams, max_new_tokens, ...).

        Raises:
            VideoDecodeError: the file gives no frame.
            ValueError: settings that do not fit the video or the model.
        """
        result = self._caption([video], num_frames, start_seconds, end_seconds, generation, raising=True)
        return result[0]

    def caption_batch(
        self,
        videos: Sequence[Video],
        num_frames: int | None = None,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        **generation: Any,
    ) -> list[Caption]:
        """Caption several videos in one batch; a video that cannot be read gets a Caption with ``error`` set."""
        return self._caption(list(videos), num_frames, start_seconds, end_seconds, generation, raising=False)

    def _caption(
        self,
        videos: list[Video],
        num_frames: int | None,
        start: float | None,
        end: float | None,
        generation: dict[str, Any],
        raising: bool,
    ) -> list[Caption]:
        results: list[Caption | None] = [None] * len(videos)
        clips: dict[int, tuple[Frames, dict[str, float]]] = {}
        for index, video in enumerate(videos):
            timings: dict[str, float] = {}
            try:
                with _timed(timings, "read_ms"):
                    clips[index] = (self._read(video, num_frames, start, end), timings)
            except (VideoDecodeError, ValueError, TypeError) as error:
                if raising:
                    raise
                name = str(video) if isinstance(video, str | PathLike) else None
                results[index] = replace(self._blank(name, start, end), error=str(error))
        if clips:
            texts = self._look_and_tell([(frames, timings) for frames, timings in clips.values()], generation)
            for (index, (frames, timings)), text in zip(clips.items(), texts, strict=True):
                results[index] = self._record(frames, text, timings, start, end)
        return [result for result in results if result is not None]

    def _look_and_tell(
        self, clips: list[tuple[Frames, dict[str, float]]], generation: dict[str, Any]
    ) -> list[GeneratedText]:
        log_densities = None
        if self.weighting.mode != "none":
            log_densities = []
            for frames, timings in clips:
                with _timed(timings, "saliency_ms"):
                    log_densities.append(self.saliency.predict(frames, size="native"))
        return self.captioner.generate([frames for frames, _ in clips], log_densities, self.weighting, **generation)

    def _read(self, video: Video, num_frames: int | None, start: float | None, end: float | None) -> Frames:
        limit = self.captioner.max_frames
        if num_frames is None:
            num_frames = min(DEFAULT_NUM_FRAMES, limit or DEFAULT_NUM_FRAMES)
        if limit is not None and num_frames > limit:
            raise ValueError(f"{self.captioner.name} takes at most {limit} frames, got num_frames={num_frames}")
        if isinstance(video, str | PathLike):
            return read_frames(video, num_frames, start, end, **self.captioner.read_options)
        if not isinstance(video, Frames):
            video = _frames_of_array(video)
        return take_frames(video, num_frames, start, end)

    def _blank(self, path: str | None, start: float | None, end: float | None) -> Caption:
        weighting = self.weighting
        looks = weighting.mode != "none"
        return Caption(
            text=None,
            path=path,
            start_seconds=start,
            end_seconds=end,
            model=self.captioner.name,
            revision=self.captioner.revision,
            saliency=self.saliency.name if looks else None,
            mode=weighting.mode,
            policy=weighting.policy if "prune" in weighting.modes else None,
            keep_ratio=weighting.keep_ratio,
        )

    def _record(
        self, frames: Frames, text: GeneratedText, timings: dict[str, float], start: float | None, end: float | None
    ) -> Caption:
        times = tuple(round(t, 6) for t in frames.pts_seconds.tolist())
        return replace(
            self._blank(frames.source, start, end),
            text=text.text,
            start_seconds=times[0] if start is None else start,
            end_seconds=times[-1] if end is None else end,
            score=text.score,
            visual_tokens=text.visual_tokens,
            frame_pts_seconds=times,
            timings={**timings, "encode_ms": text.encode_ms, "decode_ms": text.decode_ms},
            warnings=frames.warnings,
        )


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[name] = (time.perf_counter() - started) * 1000


def _frames_of_array(array: np.ndarray | Tensor) -> Frames:
    tensor = torch.as_tensor(array)
    if tensor.ndim != 4 or tensor.shape[-1] != 3 or tensor.dtype != torch.uint8:
        raise ValueError(f"frames must be (T, H, W, 3) uint8 RGB, got {tuple(tensor.shape)} {tensor.dtype}")
    return Frames(tensor.permute(0, 3, 1, 2), torch.arange(len(tensor), dtype=torch.float64))
