"""SaliencyCaptioner: the way of a video from file to caption."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from os import PathLike
from typing import Any, BinaryIO

import torch
from torch import Tensor

from salcap.caption import Caption, timed
from salcap.captioners.base import Captioner, GeneratedText
from salcap.config import Weighting, check_choice, resolve_weighting
from salcap.frames import Frames
from salcap.saliency import SaliencyModel, check_registered_name, create_saliency
from salcap.sampling import FRAME_CHOICES, choose_frames, presample_size
from salcap.sources import ClipSource, ReadClip, Video, clip_source, is_video, open_column
from salcap.views import finer, make_views, view_size
from salcap.weighting.zoom import cut_maps, zoom_boxes
from salcap.windows import Windows, cut_windows

DEFAULT_NUM_FRAMES = 8
PRESAMPLE_SIDE = 224  # pixels, for backbones that state no size of their own


class SaliencyCaptioner:
    """Captions videos: reads frames, predicts where people look, lets the captioner look there.

    Args:
        captioner: see `salcap.captioners.load_captioner`.
        saliency: the backbone; not run where ``weighting`` does not need a map.
        weighting: what the maps do to the captioner's visual tokens.

    Raises:
        TypeError: a ``saliency`` that is none.
        ValueError: the captioner cannot honour the weighting's mode.
    """

    def __init__(self, captioner: Captioner, saliency: SaliencyModel, weighting: Weighting) -> None:
        unknown = sorted(set(weighting.modes) - captioner.modes)
        if unknown:
            raise ValueError(
                f"{captioner.name} cannot honour mode {'+'.join(unknown)!r}; it allows {sorted(captioner.modes)}"
            )
        if not isinstance(saliency, SaliencyModel):
            raise TypeError(f"saliency must be a SaliencyModel or a registered name, got {type(saliency).__name__}")
        self.captioner, self.saliency, self.weighting = captioner, saliency.eval(), weighting

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
        max_visual_tokens: int | None = None,
        min_keep: int | None = None,
        scope: str | None = None,
        strength: float | None = None,
        zoom: float | None = None,
        seed: int | None = None,
        revision: str | None = None,
        device: str | int | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
    ) -> SaliencyCaptioner:
        """Load a captioner with a saliency backbone in front.

        Args:
            model: "salcap-mini" (bundled), a hub id, a local folder, or a loaded model.
            processor: of a loaded model only: its processor, or (image processor, tokenizer).
            saliency: a registered backbone's name or an instance; None takes the captioner's default.
            mode, policy, keep_ratio, max_visual_tokens, min_keep, scope, strength, zoom, seed: see
                `salcap.config.Weighting`; None takes the captioner's default. A ``keep_ratio`` below 1 or a
                ``max_visual_tokens`` alone adds "prune" to the default mode, and replaces the default's budget.
            revision, device, dtype, device_map, attn_implementation, trust_remote_code: see `load_captioner`.

        Returns:
            The captioner, its backbone on ``device`` too.

        Raises:
            OSError: a model that cannot be read; the message says what to do offline.
            TypeError: a ``saliency`` that is neither a name nor a backbone.
            ValueError: settings that the captioner cannot honour, unknown names, a device that is not here.
        """
        from salcap.captioners import load_captioner

        captioner = load_captioner(
            model,
            processor,
            revision=revision,
            device=device,
            dtype=dtype,
            device_map=device_map,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
        )
        given = {
            "mode": mode,
            "policy": policy,
            "keep_ratio": keep_ratio,
            "max_visual_tokens": max_visual_tokens,
            "min_keep": min_keep,
            "scope": scope,
            "strength": strength,
            "zoom": zoom,
            "seed": seed,
        }
        weighting = resolve_weighting(captioner.default_weighting, **given)
        if saliency is not None and mode is None and weighting.mode == "none":
            allowed = sorted(captioner.modes - {"none"})
            raise ValueError(f"{captioner.name} looks at no saliency by default: give a mode of {allowed} too")
        backbone = check_registered_name(captioner.default_saliency) if saliency is None else saliency
        backbone = create_saliency(backbone) if isinstance(backbone, str) else backbone
        return cls(captioner, backbone if device is None else backbone.to(device), weighting)

    def with_weighting(self, **options: Any) -> SaliencyCaptioner:
        """The same captioner and backbone under other settings; options as for `from_pretrained`."""
        return SaliencyCaptioner(self.captioner, self.saliency, resolve_weighting(self.weighting, **options))

    @property
    def zooms(self) -> bool:
        """Whether the captioner sees two views of each frame."""
        return "zoom" in self.weighting.modes

    @property
    def read_options(self) -> dict[str, Any]:
        """How `read_frames` reads videos: at the captioner's size, or finer where the mode zooms."""
        options = self.captioner.read_options
        return finer(options, self.weighting.zoom) if self.zooms else options

    def describe(self, frames: str = "uniform") -> dict[str, Any]:
        """The settings that a `Caption` states; None for those that do nothing here."""
        weighting, prunes = self.weighting, "prune" in self.weighting.modes
        return {
            "model": self.captioner.name,
            "revision": self.captioner.revision,
            "saliency": self.saliency.name if weighting.mode != "none" or frames == "saliency" else None,
            "frames": frames,
            "mode": weighting.mode,
            "policy": weighting.policy if prunes else None,
            "scope": weighting.scope if prunes else None,
            "keep_ratio": weighting.keep_ratio,
            "max_visual_tokens": weighting.max_visual_tokens,
            "min_keep": weighting.min_keep,
            "zoom": weighting.zoom if self.zooms else None,
        }

    def caption(
        self,
        video: Video,
        num_frames: int | None = None,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        frames: str = "uniform",
        **generation: Any,
    ) -> Caption:
        """Caption one video.

        Args:
            video: a path, a binary file that can seek, a file's bytes, `Frames`, uint8 RGB frames (T, H, W, 3) taken
                to be one second apart, or what a ``Video`` column of ``datasets`` holds, decoded or not.
            num_frames: frames to look at; None means 8, or as many as the model takes where that is fewer. With mode
                "zoom" the captioner gets two views of each: the whole frame, and a crop of the source's own pixels
                around where people look (`salcap.weighting.zoom`).
            start_seconds, end_seconds: the part of the video to caption; None means from its start, to its end.
            frames: "uniform" spreads them evenly over the clip by time; "saliency" takes more of them where the
                backbone sees the gaze move, out of about 64 that it looks at (`salcap.sampling`).
            generation: keyword arguments of ``transformers``' generate (num_beams, max_new_tokens, ...).

        Returns:
            The text with the settings, frame times and timings behind it.

        Raises:
            TypeError: no video.
            VideoDecodeError: the file gives no frame.
            FloatingPointError: the model's logits are NaN or infinite; the message says what to do.
            ValueError: settings that do not fit the video or the model.
        """
        source = clip_source(video, start_seconds, end_seconds)
        return self._caption([source], num_frames, frames, generation, raising=True)[0]

    def caption_batch(
        self,
        videos: Sequence[Video],
        num_frames: int | None = None,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        frames: str = "uniform",
        **generation: Any,
    ) -> list[Caption]:
        """Caption several videos in one batch; one that fails gets a Caption with ``error`` set and the others go on.

        Args:
            videos: a list of what `caption` takes.
            num_frames, start_seconds, end_seconds, frames, generation: as for `caption`, of each.

        Returns:
            One caption a video, in their order.

        Raises:
            TypeError: one video, or a mapping.
            ValueError: settings that fit none of the videos.
        """
        if is_video(videos) or isinstance(videos, Mapping):
            raise TypeError(f"caption_batch takes a list of videos, got {reprlib.repr(videos)}")
        clips = [clip_source(video, start_seconds, end_seconds) for video in videos]
        try:
            return self._caption(clips, num_frames, frames, generation, raising=False)
        except FloatingPointError:  # sampling stops the whole batch
            return [self._alone(clip, num_frames, frames, generation) for clip in clips]
        except ValueError as error:  # of the model; perhaps because of one of them
            captions = [self._alone(clip, num_frames, frames, generation) for clip in clips] if len(clips) > 1 else []
            if all(caption.error_class == type(error).__name__ for caption in captions):
                raise
            return captions

    def _alone(self, clip: ClipSource, num_frames: int | None, frames: str, generation: dict[str, Any]) -> Caption:
        try:
            return self._caption([clip], num_frames, frames, generation, raising=True)[0]
        except Exception as error:
            return self.failed(clip, error, frames)

    def caption_windows(
        self,
        video: str | PathLike[str] | BinaryIO | bytes,
        windows: Windows,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        **options: Any,
    ) -> Iterator[Caption]:
        """Caption a long file window by window, as `cut_windows` cuts it.

        Args:
            video: a path, a binary file that can seek, or a file's bytes.
            windows: seconds of each, or "shots".
            start_seconds, end_seconds, options: as for `caption`; so are other errors.

        Raises:
            TypeError: frames, which have no cuts to be found.
        """
        if not clip_source(video).from_file:
            raise TypeError(
                f"windows are cut out of files (a path, an open one, its bytes), got {type(video).__name__}"
            )
        for start, end in cut_windows(open_column(video)[0], windows, start_seconds, end_seconds):
            yield self.caption(video, start_seconds=start, end_seconds=end, **options)

    def caption_clips(
        self, clips: Sequence[ClipSource], num_frames: int | None = None, frames: str = "uniform", **generation: Any
    ) -> list[Caption]:
        """As `caption_batch`, of clips that say themselves how they are read, such as those of `salcap.corpus`."""
        return self._caption(clips, num_frames, frames, generation, raising=False)

    def first_read(self, num_frames: int | None = None, frames: str = "uniform") -> tuple[int, dict[str, Any]]:
        """How many frames of a clip are read first, and with which options of `read_frames`.

        Args:
            num_frames, frames: as for `caption`.

        Raises:
            ValueError: settings that fit no video.
        """
        num_frames = self.resolve_num_frames(num_frames)
        check_choice("frames", frames, FRAME_CHOICES)
        if frames == "uniform":
            return num_frames, self.read_options
        if self.read_options:
            # A pre-sample at the captioner's own size needs no second pass, which would decode nearly all again. At
            # the video's size it would cost more than that, in time as in memory.
            return presample_size(num_frames), self.read_options
        size = getattr(self.saliency, "input_size", None)
        return presample_size(num_frames), {"size": size} if size else {"shortest_side": PRESAMPLE_SIDE}

    def _caption(
        self,
        sources: Sequence[ClipSource],
        num_frames: int | None,
        choice: str,
        generation: dict[str, Any],
        raising: bool,
    ) -> list[Caption]:
        num_frames = self.resolve_num_frames(num_frames)
        check_choice("frames", choice, FRAME_CHOICES)
        looks = self.weighting.mode != "none"
        results: list[Caption | None] = [None] * len(sources)
        clips: list[ReadClip] = []
        for index, source in enumerate(sources):
            timings: dict[str, float] = {}
            try:
                frames = self._read(source, num_frames, choice, timings)
                log_density = None
                if looks:
                    with timed(timings, "saliency_ms"):
                        log_density = self.saliency.predict(frames, size="native")
                clip = ReadClip(index, frames, log_density, timings)
                clips.append(self._zoom(clip) if self.zooms else clip)
            except Exception as error:  # whatever a plug-in raises concerns this video only
                if raising:
                    raise
                results[index] = self.failed(source, error, choice)
        if clips:
            maps = [clip.log_density for clip in clips if clip.log_density is not None] if looks else None
            texts = self.captioner.generate([clip.frames for clip in clips], maps, self.weighting, **generation)
            for clip, text in zip(clips, texts, strict=True):
                if text.score is None or math.isfinite(text.score):
                    results[clip.index] = self._record(clip, text, choice)
                    continue
                failure = FloatingPointError(
                    getattr(self.captioner, "not_finite", f"{self.captioner.name} gave the score {text.score}")
                )
                if raising:
                    raise failure
                results[clip.index] = self.failed(sources[clip.index], failure, choice)
        return [result for result in results if result is not None]

    def failed(self, clip: ClipSource, error: Exception, frames: str = "uniform") -> Caption:
        """The record of a clip that gave no caption."""
        error_class = getattr(error, "error_class", type(error).__name__)
        blank = self._blank(clip.name, clip.start_seconds, clip.end_seconds, frames)
        return replace(blank, error=str(error) or error_class, error_class=error_class)

    def resolve_num_frames(self, num_frames: int | None) -> int:
        """The number of frames asked for, or the default one; a ValueError where it fits no video."""
        limit, views = self.captioner.max_frames, ""
        if self.zooms and limit is not None:
            limit, views = limit // 2, f" in mode {self.weighting.mode!r}, which makes two views of each"
        if num_frames is None:
            num_frames = min(DEFAULT_NUM_FRAMES, limit or DEFAULT_NUM_FRAMES)
        if not isinstance(num_frames, Integral) or not 1 <= num_frames <= (limit or num_frames):
            most = limit or "any number of"
            raise ValueError(f"{self.captioner.name} takes 1 to {most} frames{views}, got {num_frames!r}")
        return num_frames

    def _read(self, source: ClipSource, num_frames: int, choice: str, timings: dict[str, float]) -> Frames:
        def read(count: int, **options: Any) -> Frames:
            with timed(timings, "read_ms"):
                return source.read(count, **options)

        count, options = self.first_read(num_frames, choice)
        first = read(count, **options)
        if choice == "uniform":
            return first
        with timed(timings, "choose_ms"):
            maps = self.saliency.predict(first, size="native")
            chosen = choose_frames(first, maps, num_frames, first.clip_seconds if source.from_file else None)
        if not source.from_file or self.read_options:
            return chosen
        full = read(num_frames, at_seconds=chosen.pts_seconds.tolist())
        return replace(full, warnings=tuple(dict.fromkeys(chosen.warnings + full.warnings)))

    def _zoom(self, clip: ReadClip) -> ReadClip:
        """The clip with two views of each frame, and a map for each of them."""
        assert clip.log_density is not None
        with timed(clip.timings, "zoom_ms"):
            views, maps, boxes = self.zoom_in(clip.frames, clip.log_density)
        return replace(clip, frames=views, log_density=maps, boxes=boxes)

    def zoom_in(self, frames: Frames, maps: Tensor) -> tuple[Frames, Tensor, Tensor]:
        """Two views of each of F frames, a map for each view, and the boxes (F, 4) of the crops, see `zoom_boxes`."""
        zoom = self.weighting.zoom
        height, width = frames.pixels.shape[-2:]
        size = view_size((height, width), self.captioner.read_options, zoom)
        boxes = zoom_boxes(maps, frames.pts_seconds, (height, width), zoom, self.captioner.seen_box(*size))
        return make_views(frames, boxes, size), torch.stack([maps, cut_maps(maps, boxes)], 1).flatten(0, 1), boxes

    def _blank(self, path: str | None, start: float | None, end: float | None, choice: str) -> Caption:
        return Caption(text=None, path=path, start_seconds=start, end_seconds=end, **self.describe(choice))

    def _record(self, clip: ReadClip, text: GeneratedText, choice: str) -> Caption:
        times = tuple(round(t, 6) for t in clip.frames.pts_seconds[:: 1 if clip.boxes is None else 2].tolist())
        boxes = () if clip.boxes is None else clip.boxes.tolist()
        start, end = clip.frames.clip_seconds or (times[0], times[-1])
        return replace(
            self._blank(clip.frames.source, round(start, 6), round(end, 6), choice),
            text=text.text,
            score=text.score,
            zoom_boxes=tuple((round(x, 6), round(y, 6), round(z, 6), round(w, 6)) for x, y, z, w in boxes),
            views=len(clip.frames),
            visual_tokens=text.visual_tokens,
            frame_pts_seconds=times,
            timings=clip.timings | text.timings,
            warnings=clip.frames.warnings,
        )
