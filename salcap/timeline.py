"""Which frames of a video to decode, and from which keyframe: the choice apart from the decoder that carries it out.

Times are integers in the stream's own time base ("ticks").
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import chain, dropwhile, groupby, pairwise
from typing import Any

import numpy as np

CLOCK_PLACES = 24  # from either end of a file, where to look at its clock
# a leap of a clock is so long, of the usual way between two places at least so many, and there are so many at most
LEAP_SECONDS, LEAP_RATE, LEAPS = 60, 4, 16
MAX_ERRORS = 1000  # in a row, then the rest of the file is given up
SNAP_COST = 48  # frames: what costs less to decode is never moved to a keyframe
SNAP_SHARE = Fraction(1, 4)  # of the interval between frames: the most that one is moved
ROUNDING = Fraction(1, 10**6)  # seconds: a clip that starts with a frame starts no earlier, whatever floats make of it

Ticks = int
Timed = tuple[Ticks, Any]  # a decoded frame after the time at which it comes on screen


def spread_times(times: Sequence[Ticks], targets: Sequence[Ticks]) -> list[Ticks]:
    """As many different ``times`` as ``targets``, each as near as that allows to the one on screen at its target."""
    if len(times) <= len(targets):
        return list(times)
    return [times[index] for index in spread_indices(times, targets)]


def spread_indices(times: Sequence[float] | np.ndarray, targets: Sequence[float] | np.ndarray) -> np.ndarray:
    """(len(targets),) rising indices of ``times``: each of what is on screen at its target, or as near as can be."""
    ramp = np.arange(len(targets))
    indices = np.maximum(np.searchsorted(times, targets, side="right") - 1, 0)
    indices = np.maximum.accumulate(indices - ramp) + ramp  # strictly rising
    return np.minimum(indices, len(times) - len(targets) + ramp)  # and with room for those that follow


def in_order(frames: Iterable[Timed]) -> Iterator[Timed]:
    """Frames without those whose time is wrong: before that of the last one, or after that of all that follow."""
    last: Timed | None = None
    before = -math.inf
    for frame in frames:
        if last is not None and frame[0] > last[0]:
            yield last
            before, last = last[0], frame
        elif last is None or frame[0] > before:  # the last one was too far ahead
            last = frame
    if last is not None:
        yield last


def split_clock(times: Sequence[Ticks], second: Ticks, leap: int | None = LEAP_SECONDS) -> list[Sequence[Ticks]]:
    """Cut the times of packets, in the order of the file, into parts of one clock each.

    A part ends where times go back by more than a second and stay there. A single wrong time in a damaged file does
    not end a part, and neither do the small steps back of reordered frames.

    Args:
        second: ticks of a second.
        leap: seconds by which a clock may go forward within a part; None for any number.
    """
    cuts = [0]
    for place in range(2, len(times) - 1):
        before, after = times[place - 2 : place], times[place : place + 2]
        forward = leap is not None and times[place] - times[place - 1] > leap * second
        if max(after) < min(before) - second or (forward and min(after) > max(before) + second):
            cuts.append(place)
    return [times[start:stop] for start, stop in pairwise([*cuts, len(times)]) if stop > start]


class Timeline(ABC):
    """A stream that can be sought, read packet by packet, and decoded forward.

    Attributes:
        index: the stream's number in its container.
        zero: ticks of second 0, the start of the file as players count it. Sound may start before the picture.
        origin, end: ticks at which the first frame comes on screen and the last one leaves it.
        step: ticks a frame lasts on average.
        delay: ticks from the first packet's decoding time to ``origin``.
        by_dts: frames carry no presentation times (AVI), they are told by the packets' decoding times and ``delay``.
        counted: packets have no times at all (raw streams), or wrong ones: frames are counted, and there is no seeking.
        restarts: whether the clock was seen to start over, see `find_end`.
        repeats: whether several packets were seen to have one time.
        last_byte: where the last packet that was read ends in the file; 0 if packets do not say so.
    """

    index: int
    time_base: Fraction
    zero: Ticks
    origin: Ticks
    end: Ticks
    step: Fraction
    delay: Ticks = 0
    by_dts: bool = False
    counted: bool = False
    restarts: bool = False
    repeats: bool = False
    last_byte: int = 0

    @abstractmethod
    def packets(self, max_errors: int = MAX_ERRORS, every_stream: bool = False) -> Iterator[Any]:
        """Packets of this stream, or of all, from the present place to the end or to too many errors in a row."""

    @abstractmethod
    def decode_packet(self, packet: Any | None) -> list[Any] | None:
        """Frames that come out when a packet goes in, or at the end; None where that failed."""

    @abstractmethod
    def seek(self, ticks: Ticks, any_frame: bool = False) -> bool:
        """Go to the keyframe (or frame) before ``ticks``, as well as the container can; False where it cannot."""

    @abstractmethod
    def seek_byte(self, offset: int) -> bool:
        """Go to the first packet after a place in the file; False where that cannot be done."""

    @abstractmethod
    def is_keyframe(self, packet: Any) -> bool:
        """Whether decoding can start with the packet."""

    @abstractmethod
    def rewind(self) -> None:
        """Go to the first packet, also where the container cannot seek."""

    def decode(self, packets: Iterator[Any], start: Ticks | None = None) -> Iterator[Timed]:
        """Frames of the packets in the order shown; ``start`` is the first one's time where it has none of its own."""
        errors, previous = 0, None if start is None else start - self.step
        for packet in chain(packets, [None]):
            frames = self.decode_packet(packet)
            errors = errors + 1 if frames is None else 0
            if errors > MAX_ERRORS:
                return
            for frame in frames or []:
                ticks = None if self.counted else frame.pts if frame.pts is not None else frame.dts
                if ticks is None and previous is None:
                    return  # after a seek nothing tells where this is
                previous = Fraction(ticks) if ticks is not None else previous + self.step  # type: ignore[operator]
                yield math.floor(previous), frame

    def clip(self, start_seconds: float | None, end_seconds: float | None) -> tuple[Fraction, Fraction]:
        """The ticks of a part of the video that is given in seconds from second 0, as far as there are pictures."""
        for name, value in (("start_seconds", start_seconds), ("end_seconds", end_seconds)):
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a time from the start of the video, 0 or later, got {value}")
        if end_seconds is not None and end_seconds <= (start_seconds or 0):
            raise ValueError(f"end_seconds must be later than start_seconds, got {start_seconds} to {end_seconds}")
        start = max(self._ticks(start_seconds or 0), Fraction(self.origin))
        if start >= self.end:
            duration = self.seconds(self.end)
            raise ValueError(f"start_seconds {start_seconds} is beyond the end of the video, {duration:.3f} s")
        end = Fraction(self.end) if end_seconds is None else min(Fraction(self.end), self._ticks(end_seconds))
        if end <= start:
            first = self.seconds(self.origin)
            raise ValueError(f"end_seconds {end_seconds} is before the first picture, which comes at {first:.3f} s")
        return start, end

    def _ticks(self, seconds: float) -> Fraction:
        """Ticks of a time from second 0: whole ones if it is the time of a frame, rounded."""
        exact = self.zero + Fraction(seconds) / self.time_base
        return Fraction(round(exact)) if abs(round(exact) - exact) * self.time_base <= ROUNDING else exact

    def seconds(self, ticks: Ticks | Fraction) -> float:
        """Seconds from second 0."""
        return float((ticks - self.zero) * self.time_base)

    def find_end(self, stated: Ticks | None) -> Ticks:
        """Find ``end`` from packets alone; returns where the last packet of any stream ends.

        The last seconds of the file are read, or all of it if it cannot be sought or states no end. In a file of
        recordings laid end to end, seeking by time leads into the first one, so that the clock is seen to start over.

        Args:
            stated: the end that the container states: only a hint where to look.
        """
        ends = None
        if stated is not None:
            if self.seek(max(stated - 2 * self._second, self.origin), any_frame=True):  # packets are not in order
                ends = self._read_ends()
            low, high = self.origin, stated
            while ends is None and high - low > math.ceil(self.step):  # halve the way to the last packet
                middle = (low + high) // 2
                readable = self.seek(middle, any_frame=True) and any(True for _ in self.packets(max_errors=0))
                low, high = (middle, high) if readable else (low, middle)
            if ends is None and low > self.origin and self.seek(low, any_frame=True):
                ends = self._read_ends()
        if ends is None:
            self.rewind()
            ends = self._read_ends(MAX_ERRORS) or (self.origin, self.origin)
        self.end = max(ends[0], self.origin + 1)
        return max(ends)

    def changes_clock(self, num_bytes: int) -> bool:
        """Whether times go back, or leap for most of what they span, in a file of so many bytes, by a few packets.

        The nearer to an end, the closer they are, so that short parts are found too. A single one whose time is wrong,
        as damage makes it, is no such sign.
        """
        shares = [0.75**power for power in range(1, CLOCK_PLACES + 1)]
        places = sorted({0, *(int(num_bytes * share) for rest in shares for share in (rest, 1 - rest))})
        read = [(place, time) for place in places if (time := self._time_at(place)) is not None]
        found = [next(same) for _, same in groupby(read, lambda one: one[1])]  # two places may lead to one packet
        but_one = (found[:index] + found[index + 1 :] for index in range(len(found), -1, -1))
        rising = next((rest for rest in but_one if all(a[1] <= b[1] for a, b in pairwise(rest))), None)
        if rising is None:
            return True
        gaps = sorted(b[1] - a[1] for a, b in pairwise(rising))
        span = sum(gaps)
        least = max(LEAP_SECONDS * self._second, span // LEAPS, LEAP_RATE * gaps[len(gaps) // 2] if gaps else 0)
        # two at least are before a leap and after it; and a hole in one recording is shorter than what is there
        return 2 * sum(self._leap(a, b, least) for a, b in pairwise(rising[1:-1])) > span

    def _leap(self, one: tuple[int, Ticks], other: tuple[int, Ticks], least: Ticks) -> Ticks:
        """How much more than ``least`` passes between two packets on the way from a place to another, or 0."""
        (low, before), (high, after) = one, other
        while high - low > 1 and after - before > least:
            middle = (low + high) // 2
            time = self._time_at(middle)
            if time is None:
                return 0
            if time - before > after - time:
                high, after = middle, time
            else:
                low, before = middle, time
        return after - before if after - before > least else 0

    def _time_at(self, place: int) -> Ticks | None:
        """When the first packet after a place in the file is decoded."""
        if not self.seek_byte(place):
            return None
        return next((packet.dts for packet in self.packets(0)), None)

    def count_frames(self) -> None:
        """From now on time frames at an even rate in the order of the file, the average of all of its parts."""
        self.rewind()
        times = [
            time for packet in self.packets() if (time := packet.pts if packet.dts is None else packet.dts) is not None
        ]
        parts = split_clock(times, self._second)
        spans = [(max(part) - min(part), len(part) - 1) for part in parts]
        length, steps = sum(span for span, _ in spans), sum(number for _, number in spans)
        if length and steps:
            self.step = Fraction(length, steps)
        self.counted = True

    def _read_ends(self, max_errors: int = 0) -> tuple[Ticks, Ticks] | None:
        """Read on to the end of the file: the latest end of a packet of this stream, and of one of any other."""
        stamps, lengths, last = [], [], self.origin
        for packet in self.packets(max_errors, every_stream=True):
            self.last_byte = max(self.last_byte, (packet.pos or 0) + packet.size)
            if packet.stream_index == self.index:
                stamps.append((packet.pts, packet.dts))
                lengths.append(packet.duration or self.step)
            elif packet.pts is not None:
                end = (packet.pts + (packet.duration or 0)) * packet.time_base / self.time_base
                last = max(last, math.floor(end))
        if not self.counted:
            shown = [pts for pts, _ in stamps if pts is not None]
            self.repeats = len(set(shown)) < len(shown)
            decoded = [pts if dts is None else dts for pts, dts in stamps]
            known = [time for time in decoded if time is not None]
            self.restarts = self.restarts or len(split_clock(known, self._second, leap=None)) > 1
        ends = [math.floor(time + length) for time, length in zip(self._times(stamps), lengths, strict=False)]
        return (max(ends), last) if ends and max(ends) > self.origin else None

    def _times(self, stamps: Sequence[tuple[Ticks | None, Ticks | None]]) -> list[Ticks]:
        """When frames of consecutive packets are shown, as a set rather than one by one; ``stamps``: their pts, dts."""
        if self.counted:
            return [math.floor(self.origin + number * self.step) for number in range(len(stamps))]
        if self.by_dts or any(pts is None for pts, _ in stamps):
            return [dts + self.delay for _, dts in stamps if dts is not None]
        return [pts for pts, _ in stamps if pts is not None]

    def _time(self, packet: Any) -> Ticks | None:
        """When the frame of a packet is shown."""
        if packet.pts is not None and not self.by_dts:
            return packet.pts
        return None if packet.dts is None else packet.dts + self.delay

    def shown_times(self, start: Fraction, end: Fraction) -> list[Ticks]:
        """When each frame on screen between ``start`` and ``end`` came there, without decoding."""
        stamps = []
        for packet in self._packets_from(self.keyframe_before(math.floor(start))):
            time = None if self.counted else packet.pts if packet.dts is None else packet.dts
            if time is not None and time >= end:  # later packets are shown later still
                break
            if not packet.is_discard:
                stamps.append((packet.pts, packet.dts))
        times = sorted(set(self._times(stamps)))
        return times[max(0, bisect_right(times, start) - 1) : bisect_left(times, end)]

    def keyframe_before(self, ticks: Ticks) -> Ticks | None:
        """Time of the last keyframe shown at or before ``ticks``; None where seeking does not find one."""
        back = 0
        while ticks - back >= self.origin and self.seek(ticks - back):
            found = None
            for number, packet in enumerate(self.packets()):
                time = self._time(packet)
                if time is None:
                    return None
                if time <= ticks and self.is_keyframe(packet):
                    found = time
                    if number == back == 0:  # an index led here: it is the last one
                        break
                elif (time if packet.dts is None else packet.dts) > ticks:
                    break
            if found is not None:
                return found
            back = max(2 * back, self._second)  # landed inside a group, as MPEG-TS does
        return None

    @property
    def _second(self) -> Ticks:
        return math.ceil(1 / self.time_base)

    def plan(self, targets: Sequence[Ticks], interval: Fraction | int = 0) -> list[tuple[Ticks, Ticks | None]]:
        """Each target with the keyframe to decode it from, found without decoding; None: from the start of the file.

        A target that would cost more than SNAP_COST frames moves to a keyframe within SNAP_SHARE of ``interval``.
        """
        tolerance = interval * SNAP_SHARE
        plan: list[tuple[Ticks, Ticks | None]] = []
        for target in targets:
            keyframe = self.keyframe_before(target)
            ready = max(self.origin if keyframe is None else keyframe, plan[-1][0] if plan else self.origin)
            if keyframe is not None and tolerance and target - ready > SNAP_COST * self.step:
                after = self.keyframe_before(math.floor(target + tolerance))
                nearest = min(keyframe, keyframe if after is None else after, key=lambda ticks: abs(ticks - target))
                if abs(nearest - target) <= tolerance:
                    target = keyframe = nearest
            plan.append((target, keyframe))
        return plan

    def frames_at(self, plan: Iterable[tuple[Ticks, Ticks | None]]) -> Iterator[Timed]:
        """Decode what a plan asks for: for each target the frame on screen then, or the first one after it.

        No group of pictures is decoded twice: decoding goes on where the next target's keyframe has been passed.
        """
        frames: Iterator[Timed] = iter(())
        shown: Timed | None = None
        coming: Timed | None = None
        for target, keyframe in plan:
            reached = coming or shown
            if reached is None or (keyframe is not None and keyframe > reached[0]):
                frames = self._frames_from(keyframe, target)
                shown, coming = None, next(frames, None)
            while coming is not None and (shown is None or coming[0] <= target):
                shown, coming = coming, next(frames, None)
            if shown is not None:
                yield shown

    def all_frames(self, start: Fraction, end: Fraction) -> Iterator[Timed]:
        """Decode every frame on screen between ``start`` and ``end``."""
        first = math.floor(start)
        frames = self._frames_from(self.keyframe_before(first), first)
        shown = next(frames, None)
        for coming in frames:
            if shown is not None and coming[0] > start:
                yield shown
            shown = coming
            if shown[0] >= end:
                return
        if shown is not None:
            yield shown

    def _frames_from(self, keyframe: Ticks | None, target: Ticks) -> Iterator[Timed]:
        """Decode from a keyframe on; from an earlier one where the first frame that decodes is too late for the target.

        That happens with the leading frames of open groups and with damage.
        """
        back = 1
        while keyframe is not None:
            frames = in_order(self.decode(self._packets_from(keyframe)))
            first = next(frames, None)
            if first is not None and first[0] <= target:
                return chain([first], frames)
            keyframe, back = self.keyframe_before(keyframe - back), max(2 * back, self._second)
        return in_order(self.decode(self._packets_from(None), self.origin))

    def _packets_from(self, keyframe: Ticks | None) -> Iterator[Any]:
        """Packets from a keyframe on, or from one before it; None: from the start of the file."""
        back = 0
        while keyframe is not None and keyframe - back >= self.origin and self.seek(keyframe - back):
            packets = dropwhile(lambda packet: not self.is_keyframe(packet), self.packets())
            first = next(packets, None)
            time = None if first is None else self._time(first)
            if time is not None and time <= keyframe:
                return chain([first], packets)
            back = max(2 * back, self._second) if back else max(self.delay, 1)  # MPEG-TS goes by decoding times
        self.rewind()
        return self.packets()
