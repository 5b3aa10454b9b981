"""The part of each frame that a container says is shown: Matroska's PixelCrop elements and QuickTime's clean aperture.

FFmpeg reads both but hands them to its command line tools only, and PyAV has no way to ask for them. Cropping inside
the codec's own bitstream is done by the decoders.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import islice
from typing import Any, BinaryIO, NamedTuple, cast

import av
from av.filter import Graph

from salcap.video_info import opened

_HEAD_BYTES, _TRACKS_BYTES = 2**16, 2**24  # Matroska: where the tracks usually are, and how long they may be
_MOST_BOXES = 10_000  # of MP4, in a row
_SEGMENT, _SEEK_HEAD, _CLUSTER, _TRACKS = 0x18538067, 0x114D9B74, 0x1F43B675, 0x1654AE6B
_SEEK_ID, _SEEK_POSITION, _TRACK_TYPE, _VIDEO = 0x53AB, 0x53AC, 0x83, 0xE0
_PIXEL_CROPS = {0x54CC: "left", 0x54DD: "right", 0x54BB: "top", 0x54AA: "bottom"}
_BOXES_TO_ENTRIES = (b"mdia", b"minf", b"stbl", b"stsd")

_DAMAGE = (ArithmeticError, EOFError, LookupError, OSError, ValueError, struct.error)  # the reader will tell of it

Span = tuple[int, int]  # first byte, and the one after the last


class Crop(NamedTuple):
    """Pixels to cut off each side of a frame as it is stored."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0

    def fits(self, width: int, height: int) -> bool:
        """Whether it leaves some of a frame, and asks for nothing outside it."""
        return min(self) >= 0 and self.left + self.right < width and self.top + self.bottom < height


class Cropper:
    """Cuts frames to what is shown, with FFmpeg's filter; frames that are too small for it are left as they are."""

    def __init__(self, crop: Crop) -> None:
        self._crop = crop
        self._kind: tuple[object, ...] = ()

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        left, right, top, bottom = self._crop
        if not any(self._crop) or not self._crop.fits(frame.width, frame.height):
            return frame
        kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if kind != self._kind:
            graph = Graph()
            size = f"width={frame.width}:height={frame.height}:pix_fmt={frame.format.name}:time_base=1/1"
            source = graph.add("buffer", f"{size}:colorspace={frame.colorspace}:range={frame.color_range}")
            crop = graph.add("crop", f"iw-{left + right}:ih-{top + bottom}:{left}:{top}:exact=1")
            self._sink = graph.add("buffersink")
            source.link_to(crop)
            crop.link_to(self._sink)
            graph.configure()
            self._graph, self._source, self._kind = graph, source, kind
        self._source.push(frame)
        return cast(av.VideoFrame, self._sink.pull())


def crop_of(path: Any, container: Any, stream: Any) -> tuple[Crop, list[str]]:
    """What an open container says is to be cut off the frames of one of its video streams, and what to warn of.

    Args:
        path: the container's file, or the file object, which is left where it was.
    """
    kind, number = container.format.name, container.streams.video.index(stream)
    if not kind.startswith(("matroska", "mov")):
        return Crop(), []
    crop = Crop()
    with suppress(*_DAMAGE), opened(path) as file:
        crop = container_crop(file, kind, stream.id, number)
    width, height = stream.codec_context.width, stream.codec_context.height
    if crop.fits(width, height):
        return crop, []
    return Crop(), [f"the container crops {tuple(crop)} of {width}x{height} pixels, which leaves none: not cropped"]


def container_crop(file: BinaryIO, format_name: str, track_id: int, track_number: int) -> Crop:
    """What a container says is to be cut off the frames of a video track; nothing where it does not say so.

    Args:
        file: is left where it was.
        format_name: FFmpeg's, of the container.
        track_id: the stream's id, which is the track's in MP4.
        track_number: which of the video tracks it is, from 0: Matroska's are told by their order.

    Raises:
        ArithmeticError, EOFError, LookupError, OSError, ValueError, struct.error: the file is damaged.
    """
    place = file.tell()
    try:
        if format_name.startswith("matroska"):
            return _matroska_crop(file, track_number)
        if format_name.startswith("mov"):
            return _clean_aperture(file, track_id)
    finally:
        file.seek(place)
    return Crop()


def _matroska_crop(file: BinaryIO, track_number: int) -> Crop:
    """The PixelCrop elements of the track, RFC 9559 section 5.1.4.1.28."""
    tracks = [
        dict(_elements(track))
        for number, track in _elements(_tracks(file))
        if number == 0xAE  # TrackEntry
    ]
    videos = [track for track in tracks if track.get(_TRACK_TYPE) == b"\x01"]
    settings = dict(_elements(videos[track_number].get(_VIDEO, b"")))
    return Crop(**{side: int.from_bytes(settings.get(number, b"")) for number, side in _PIXEL_CROPS.items()})


def _tracks(file: BinaryIO) -> bytes:
    """The contents of Matroska's Tracks, which come before the first cluster or where the SeekHead points."""
    head = _read(file, 0, _HEAD_BYTES)
    segment = next((start for number, (start, _) in _spans(head) if number == _SEGMENT), len(head))
    places = []
    for number, (start, end) in _spans(head, segment):
        if number == _TRACKS:
            return _read(file, start, min(end - start, _TRACKS_BYTES))
        if number == _CLUSTER:
            break
        if number == _SEEK_HEAD:
            for _, entry in _elements(head[start:end]):
                seek = dict(_elements(entry))
                if int.from_bytes(seek.get(_SEEK_ID, b"")) == _TRACKS:
                    places.append(segment + int.from_bytes(seek[_SEEK_POSITION]))
    for place in places:
        number, (start, end) = next(_spans(_read(file, place, 16)), (0, (0, 0)))
        if number == _TRACKS:
            return _read(file, place + start, min(end - start, _TRACKS_BYTES))
    return b""


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    for number, (start, end) in _spans(data):
        yield number, data[start:end]


def _spans(data: bytes, at: int = 0) -> Iterator[tuple[int, Span]]:
    """EBML elements in a row, as far as the data go: id, and where the contents are."""
    while at < len(data):
        try:
            number, at = _variable(data, at)
            size, start = _variable(data, at)
        except (EOFError, IndexError):
            return
        width = start - at
        size -= 1 << 7 * width
        at = start + size
        if size == (1 << 7 * width) - 1:  # unknown: to the end
            at = 2**63
        yield number, (start, at)


def _variable(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length with its marker bit, and where it ends."""
    end = at + 9 - data[at].bit_length()
    if end > len(data):
        raise EOFError
    return int.from_bytes(data[at:end]), end


def _clean_aperture(file: BinaryIO, track_id: int) -> Crop:
    """The clap box of the track's first sample entry, ISO/IEC 14496-12 section 12.1.4."""
    for movie in _boxes(file, (0, 2**63), b"moov"):
        for track in _boxes(file, movie, b"trak"):
            if track_id not in [_track_id(file, header) for header in _boxes(file, track, b"tkhd")]:
                continue
            span = track
            for kind in _BOXES_TO_ENTRIES:
                span = next(_boxes(file, span, kind), (0, 0))
            if span == (0, 0):
                break
            start = span[0] + 8
            size, width, height = struct.unpack(">I28x2H", _read(file, start, 36))
            for clap in _boxes(file, (start + 86, start + size), b"clap"):
                return _crop_to(width, height, struct.unpack(">4I iI iI", _read(file, clap[0], 32)))
            return Crop()
    return Crop()


def _track_id(file: BinaryIO, header: Span) -> int:
    version, *_ = _read(file, header[0], 1)
    return int.from_bytes(_read(file, header[0] + (20 if version else 12), 4))


def _crop_to(width: int, height: int, aperture: tuple[int, ...]) -> Crop:
    shown_width, shown_height, right, down = (Fraction(*aperture[at : at + 2]) for at in (0, 2, 4, 6))
    left, top = round((width - shown_width) / 2 + right), round((height - shown_height) / 2 + down)
    return Crop(left, width - left - round(shown_width), top, height - top - round(shown_height))


def _boxes(file: BinaryIO, span: Span, wanted: bytes) -> Iterator[Span]:
    """Where the contents of the boxes of one type are, among those in a row."""
    return (found for kind, found in islice(mp4_boxes(file, span), _MOST_BOXES) if kind == wanted)


def mp4_boxes(file: BinaryIO, span: Span = (0, 2**63)) -> Iterator[tuple[bytes, Span]]:
    """Walk the boxes in a row of an MP4 file: the type of each, and where its contents are."""
    at, end = span
    while at + 8 <= end:
        header = _read(file, at, 16)
        if len(header) < 8:
            return
        size, kind = struct.unpack(">I4s", header[:8])
        start = at + 8
        if size == 1:
            size, start = struct.unpack(">8xQ", header)[0], at + 16
        at = at + size if size else end
        if at < start:
            return
        yield kind, (start, min(at, end))


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)
