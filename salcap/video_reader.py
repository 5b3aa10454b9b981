"""Video files in, pictures as arrays out: decode only what is needed, scale while decoding.

Without torch, so that reading processes start at once (`salcap.video` makes `Frames` of the pictures).

Seconds are counted from the start of the file, as players and subtitles count them: from the first sound or picture,
whatever clock the file was written with. Inside, times are ticks of the stream's time base (see `salcap.timeline`).
"""

from __future__ import annotations

import io
import math
import operator
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import chain, islice, pairwise
from typing import Any

import av
import numpy as np
from av.codec.context import Flags as CodecFlags
from av.container import Flags
from av.video.reformatter import VideoReformatter

from salcap.timeline import MAX_ERRORS, Ticks, Timed, Timeline, spread_times
from salcap.video_colour import to_srgb
from salcap.video_crop import Cropper, crop_of
from salcap.video_geometry import orientation, scaled_size, square_size
from salcap.video_info import Pictures, VideoDecodeError, VideoLimits, shortage
from salcap.video_joined import FirstBytes, another_file_follows, index_goes_back, unreadable_from
from salcap.video_open import (
    FAILURES,
    VideoPath,
    contents_of,
    decoder_log,
    main_stream,
    name_of,
    open_container,
    plain_file,
    stated_end,
    undiscarded,
    words_of,
)

MAX_THREADS = 4  # each decoding thread holds a frame, and after a seek wastes one
THREADED_PIXELS = 640 * 360  # of smaller frames threads gain nothing, and leave memory in pieces
DEFAULT_LIMITS = VideoLimits()
RESTARTED = "its clock starts over or leaps, as in joined files: frames are timed at an even rate"
ENCRYPTED_TAGS = ("encv", "drmi")  # of MP4's sample entries: Common Encryption, FairPlay


def read_pictures(
    path: VideoPath,
    num_frames: int = 8,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    *,
    at_seconds: Sequence[float] | None = None,
    size: tuple[int, int] | None = None,
    shortest_side: int | None = None,
    exact: bool = False,
    limits: VideoLimits = DEFAULT_LIMITS,
) -> Pictures:
    """See `salcap.video.read_frames`."""
    num_frames = operator.index(num_frames) if at_seconds is None else len(at_seconds)
    if at_seconds is not None and any(after <= before for before, after in pairwise(at_seconds)):
        raise ValueError(f"at_seconds must rise, got {list(at_seconds)}")
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    with _Video(path, limits) as video:
        video.scale_to(size, shortest_side, num_frames)
        start, end = video.clip(start_seconds, end_seconds)
        interval = (end - start) / num_frames
        if at_seconds is None:
            targets = [math.floor(start + (number + Fraction(1, 2)) * interval) for number in range(num_frames)]
        else:
            targets = [video.zero + round(Fraction(seconds) / video.time_base) for seconds in at_seconds]
        pictures = video.read(video.frames_at(video.plan(targets, 0 if exact or at_seconds else interval)), end)
        if len(pictures) < num_frames:  # stills, damage, or a short clip: choose among the frames that there are
            times = spread_times(video.shown_times(start, end), targets)
            missing = video.plan([ticks for ticks in times if ticks not in pictures])
            pictures |= video.read(video.frames_at(missing), end)
            if len(pictures) < len(times) or (len(pictures) < num_frames and video.damage):
                video.be_careful()
                times = spread_times([ticks for ticks, _ in video.all_frames(start, end)], targets)
                pictures |= video.read((timed for timed in video.all_frames(start, end) if timed[0] in times), end)
        if not pictures:
            raise video.failed("no frame of the clip could be decoded")
        if len(pictures) < num_frames:
            video.notes.append(shortage(num_frames, len(pictures)))
        if end_seconds is not None and end_seconds > video.seconds(video.end):
            video.notes.append(f"end_seconds {end_seconds} is beyond the end of the video: read up to it")
        shown = spread_times(sorted(pictures), targets)
        return Pictures(
            pixels=np.stack([pictures[ticks] for ticks in shown]),
            pts_seconds=[video.seconds(ticks) for ticks in shown],
            source=video.source,
            clip_seconds=(video.seconds(start), video.seconds(end)),
            warnings=video.warnings(),
        )


def stream_frames(
    path: VideoPath,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    *,
    size: tuple[int, int],
    warnings: list[str] | None = None,
    limits: VideoLimits = DEFAULT_LIMITS,
) -> Iterator[tuple[float, np.ndarray]]:
    """Decode every frame of a clip, one in memory at a time: when it comes on screen, and (height, width, 3) uint8 RGB.

    Args, errors: as `salcap.video.read_frames`. Frames that do not decode are left out; all are turned as the first is.
    ``warnings`` is a list that those of `Frames` are put into at the end.
    """
    with _Video(path, limits) as video:
        video.scale_to(size, None, 1)
        video.orientation = orientation(video.first[1])
        start, end = video.clip(start_seconds, end_seconds)
        for timed in video.all_frames(start, end):
            for ticks, picture in video.read([timed], end).items():
                yield video.seconds(ticks), picture
        if warnings is not None:
            warnings += video.warnings()


class _Video(Timeline):
    """One open video stream. What goes wrong on the way is counted, not raised, as long as there are frames.

    Attributes:
        first: the first frame that decodes, with its time.
        size: (height, width) of the pictures handed out, whose pixels are square.
        orientation: of all frames; None: each one's own.
        cropper: cuts off what the container hides; None until the file is open.
        length: bytes of the file that are read; None for all.
    """

    orientation: tuple[int, int, int, int] | None = None
    cropper: Cropper | None = None
    length: int | None = None

    def __init__(self, path: VideoPath, limits: VideoLimits = DEFAULT_LIMITS) -> None:
        self.path: Any = io.BytesIO(path) if isinstance(path, bytes) else plain_file(path)
        self.limits = limits
        self.source = None if isinstance(path, bytes) else name_of(path)
        self.name = self.source or "<file object>"
        self.notes: list[str] = []
        self.damage: Counter[str] = Counter()
        self.cause: Exception | None = None
        self.num_decoded = 0
        self.threads = min(MAX_THREADS, os.cpu_count() or 1)
        self.reformatter = VideoReformatter()
        self.container: Any = None
        self.stream: Any = None
        try:
            self._open()
            self._measure()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> _Video:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self.stream is not None:
            self.stream.codec_context.flush_buffers()  # lets the decoder's threads come to rest first
        if self.container is not None:
            self.container.close()
        self.stream = self.container = None

    def failed(self, message: str) -> VideoDecodeError:
        """The error to raise: with FFmpeg's words on the file, and the first thing that went wrong as its cause.

        A file without a frame that turns out to be something else is told by that.
        """
        contents = None if self.num_decoded else contents_of(self.path)
        if contents is None:
            words = [message, *self.damage, *decoder_log(self.path, self.limits.max_pixels)]
        else:
            words = [contents, message]
        error = VideoDecodeError(self.name, "; ".join(dict.fromkeys(words)))
        error.__cause__ = self.cause
        return error

    def warnings(self) -> tuple[str, ...]:
        return (*self.notes, *(f"damaged: {words} ({count} times)" for words, count in self.damage.items()))

    def _count(self, error: Exception) -> None:
        self.cause = self.cause or error
        self.damage[words_of(error)] += 1

    def _open(self) -> None:
        try:
            file: Any = self.path if self.length is None else FirstBytes(self.path, self.length)
            self.container = open_container(file, self.limits.max_pixels)
        except FAILURES as error:
            self.cause = error
            raise self.failed(words_of(error)) from error
        # Times that FFmpeg guesses are wrong for reordered frames in AVI; without them frames carry the decoder's.
        # In program streams packets of several frames have no others.
        if self.container.format.name != "mpeg":
            self.container.flags &= ~Flags.gen_pts.value
        stream = main_stream(self.container)
        if stream is None:
            kinds = ", ".join(sorted({stream.type for stream in self.container.streams})) or "none"
            raise self.failed(f"no video stream (streams in the file: {kinds})")
        codec = stream.codec_context
        if codec is None:
            raise self.failed("no decoder for its video stream")
        most = self.limits.max_pixels
        if codec.width * codec.height > most:
            raise self.failed(f"declares {codec.width}x{codec.height} pixels, at most {most} are decoded (max_pixels)")
        if codec.codec_tag in ENCRYPTED_TAGS or "enc_key_id" in stream.metadata:  # MP4, Matroska
            raise self._encrypted()
        codec.options = {"max_pixels": str(most)}
        small = codec.width * codec.height < THREADED_PIXELS
        codec.flags |= CodecFlags.unaligned  # or hidden columns at the left are shown, to keep memory aligned
        codec.thread_type, codec.thread_count = "AUTO", 1 if small else self.threads
        self.stream, self.index, self.time_base = stream, stream.index, stream.time_base
        self.step = 1 / ((stream.average_rate or stream.guessed_rate or 25) * stream.time_base)
        if self.cropper is None:
            crop, notes = crop_of(self.path, self.container, stream)
            self.cropper = Cropper(crop)
            self.notes += notes

    def _encrypted(self) -> VideoDecodeError:
        return VideoDecodeError(self.name, "the video stream is encrypted (DRM): decrypt it first")

    def _refuse_encrypted(self, packet: av.Packet | None = None) -> None:
        if packet is not None and packet.has_sidedata("encryption_info"):
            raise self._encrypted()

    def _measure(self) -> None:
        """Decode the first frame, learn from it how this file tells time, and find the end."""
        head: list[av.Packet] = []
        for careful in (False, True):
            if careful:
                self.be_careful()
            packets = self.packets()
            head = list(islice(packets, 1))
            self._refuse_encrypted(*head)
            first = next(self.decode(chain(head, packets), self.stream.start_time or 0), None)
            if first is not None:
                break
        else:
            raise self.failed("no frame could be decoded")
        self.first, (self.origin, frame) = first, first
        if frame.pts is not None and self.stream.start_time is not None:
            self.origin = min(self.origin, self.stream.start_time)
        self.zero = self.origin
        if frame.pts is not None and self.container.start_time is not None:
            start = Fraction(self.container.start_time, av.time_base) / self.time_base
            self.zero = min(self.origin, math.floor(start))
        self.by_dts, self.counted = frame.pts is None, frame.pts is None and head[0].dts is None
        self.delay = 0 if head[0].dts is None else first[0] - head[0].dts
        self.size, notes = square_size(self._shown(frame), self.stated_aspect())
        self.notes += notes
        stated, kind = stated_end(self.container, self.stream, self.step), self.container.format.name
        self.restarts = kind == "mpegts" and self.changes_clock(self.container.size)
        last = self.origin if self.restarts else self.find_end(stated)
        self.restarts |= index_goes_back(self.container, self.stream, head[0])
        if self.restarts and kind.startswith("mov") and (place := unreadable_from(self.path)):
            self.notes.append("another file follows, as in joined files: only the first one is read")
            self.length, self.restarts = place, False
            self.damage.clear()
            self.rewind()
            stated = stated_end(self.container, self.stream, self.step)
            last = self.find_end(stated)
        if self.restarts or (self.repeats and kind == "mpeg"):
            if self.restarts:
                self.notes.append(RESTARTED)
            self.count_frames()
            self.zero, stated = self.origin, None
            last = self.find_end(None)
        if self.length is None and another_file_follows(self.path, kind, self.last_byte):
            self.notes.append("another file follows the part that is read, as in joined files")
        if self.seconds(self.end) > self.limits.max_seconds:
            length = f"{self.seconds(self.end):.0f} s long"
            raise self.failed(f"{length}, at most {self.limits.max_seconds:.0f} s are read (max_seconds)")
        if (
            kind == "avi"
            and stated is not None
            and not self.counted
            and self.end - stated > max(2 * self.step, Fraction(1, 2) / self.time_base)
        ):
            self.notes.append(f"the file states {self.seconds(stated):.2f} s but goes on, as joined files do")
        reached = self.seconds(last if self.stream.duration is None else self.end)
        if stated is not None and self.seconds(stated) > reached + float(self.step * self.time_base) + 0.01:
            states = f"the file states {self.seconds(stated):.2f} s but ends after {reached:.2f} s"
            self.notes.append(f"{states}: it may be truncated")
        if kind == "mpegts" and all(self.container.size % size for size in (188, 192, 204)):
            self.notes.append("the file ends within a transport packet: it may be truncated")

    def stated_aspect(self) -> Fraction:
        """Width of a stored pixel over its height, as the container or else the codec states it."""
        return self.stream.sample_aspect_ratio or self.stream.codec_context.sample_aspect_ratio or Fraction(1)

    def scale_to(self, size: tuple[int, int] | None, shortest_side: int | None, num_frames: int) -> None:
        """Set the size of the pictures handed out, unless so many of them would take too much memory."""
        self.size = scaled_size(self.size, size, shortest_side)
        taken, most = 3 * num_frames * self.size[0] * self.size[1], self.limits.max_bytes
        if taken > most:
            sized = f"{num_frames} frames of {self.size[1]}x{self.size[0]}"
            raise self.failed(f"{sized} pixels take {taken} bytes, at most {most} are read (max_bytes)")

    def read(self, frames: Iterable[Timed], end: Fraction) -> dict[Ticks, np.ndarray]:
        """(H, W, 3) pictures of decoded frames by the time at which they come on screen, if before ``end``."""
        pictures: dict[Ticks, np.ndarray] = {}
        for ticks, frame in frames:
            if ticks < end and ticks not in pictures:
                try:
                    pictures[ticks] = self._to_rgb(frame)
                except FAILURES as error:
                    self._count(error)
        return pictures

    def _to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """(H, W, 3) uint8 of the size handed out, upright."""
        a, b, c, d = self.orientation or orientation(frame)
        height, width = self.size if a else self.size[::-1]
        picture = to_srgb(self._shown(frame), self.reformatter, width, height)
        return (picture if a else picture.swapaxes(0, 1))[:: d or b, :: a or c]

    def _shown(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The part of a decoded frame that the container does not hide."""
        return frame if self.cropper is None else self.cropper(frame)

    def rewind(self) -> None:
        self.close()
        self._open()

    def be_careful(self) -> None:
        """Start over with one thread: when several meet damage, the frames that they have in hand are lost."""
        self.threads = 1
        self.rewind()

    def seek(self, ticks: Ticks, any_frame: bool = False) -> bool:
        if self.counted or self.container.format.name == "mpeg":  # times guessed after a seek in that are wrong
            return False
        with suppress(*FAILURES):
            self.container.seek(ticks - self.delay if self.by_dts else ticks, stream=self.stream, any_frame=any_frame)
            return True
        return False

    def seek_byte(self, offset: int) -> bool:
        with suppress(*FAILURES):
            self.container.seek(offset, unsupported_byte_offset=True)
            return True
        return False

    def is_keyframe(self, packet: av.Packet) -> bool:
        if packet.is_keyframe or self.container.format.name != "avi" or packet.dts is None:
            return bool(packet.is_keyframe)
        at = self.stream.index_entries.search_timestamp(packet.dts)  # for H.264 in AVI the mark may be there alone
        return at >= 0 and bool(self.stream.index_entries[at].timestamp == packet.dts)

    def packets(self, max_errors: int = MAX_ERRORS, every_stream: bool = False) -> Iterator[av.Packet]:
        errors = 0
        while errors <= max_errors:
            try:
                for packet in self.container.demux(*([] if every_stream else [self.stream])):
                    if packet.size:  # empty ones mark the end, or a frame left out in AVI
                        errors = 0
                        yield undiscarded(packet) if self.counted and packet.is_discard else packet
                return
            except IndexError:  # PyAV's at the end, by chance, where streams came up on the way: all packets are read
                return
            except FAILURES as error:
                self._count(error)
                errors += 1

    def decode_packet(self, packet: av.Packet | None) -> list[av.VideoFrame] | None:
        try:
            frames: list[av.VideoFrame] = self.stream.codec_context.decode(packet)
        except FAILURES as error:
            if not isinstance(error, EOFError):
                self._refuse_encrypted(packet)
                self._count(error)
            return None
        self.num_decoded += len(frames)
        if self.num_decoded > self.limits.max_decoded_frames:
            most = self.limits.max_decoded_frames
            raise self.failed(f"more than {most} frames to decode for those asked for (max_decoded_frames)")
        for frame in frames:
            if frame.is_corrupt:
                self._refuse_encrypted(packet)
                self.damage["a frame with concealed errors"] += 1
        return frames
