"""Fill a folder with files that a video reader must survive, and a few good ones among them.

    python scripts/make_hostile_folder.py /tmp/hostile [--video data/sample.mp4] [--seed 0]

Files are named hostile_*, good ones good_*. A hostile file may still give frames, as one that is cut short does, with a
warning then; it must never crash, hang, or take memory by what it declares. The same seed writes the same bytes.
"""

from __future__ import annotations

import argparse
import io
import random
import struct
import tempfile
import wave
import zlib
from collections.abc import Iterator
from pathlib import Path

import av
from av.bitstream import BitStreamFilterContext

CONTAINERS = {"mp4": "mp4", "mkv": "matroska", "avi": "avi", "ts": "mpegts"}
CUTS = (0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)
FLIPS = (0.00001, 0.0001, 0.001, 0.01)  # share of the bits


def remux(video: Path, container: str, options: dict[str, str] | None = None) -> bytes:
    """The pictures of an H.264 video in another container, not encoded anew."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video"  # not in memory: faststart reads it again
        with av.open(str(video)) as source, av.open(str(path), "w", format=container, options=options or {}) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            stream.time_base = 1 / source.streams.video[0].average_rate  # AVI fills finer ticks with empty frames
            start_codes = BitStreamFilterContext("h264_mp4toannexb", source.streams.video[0])
            for packet in source.demux(video=0):
                for part in start_codes.filter(packet) if container == "avi" and packet.size else [packet]:
                    if part.size:
                        part.stream = stream
                        target.mux(part)
        return path.read_bytes()


def flip(data: bytes, share: float, rng: random.Random, first: int = 0, last: int | None = None) -> bytes:
    """Turn over a share of the bits between two bytes, at least one."""
    flipped = bytearray(data)
    last = len(data) if last is None else last
    for _ in range(max(1, round((last - first) * 8 * share))):
        flipped[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def box(kind: bytes, content: bytes, size: int | None = None) -> bytes:
    """An MP4 box, with a declared size that may be a lie."""
    return struct.pack(">I", len(content) + 8 if size is None else size) + kind + content


def patched(data: bytes, after: bytes, offset: int, value: bytes) -> bytes:
    """``data`` with ``value`` written ``offset`` bytes after the end of a marker."""
    at = data.index(after) + len(after) + offset
    return data[:at] + value + data[at + len(value) :]


def png(width: int, height: int) -> bytes:
    """A grey PNG that declares a size and holds next to nothing of it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )


def sound() -> bytes:
    """A tenth of a second of silence as WAV."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, 800, "NONE", ""))
        file.writeframes(bytes(1600))
    return buffer.getvalue()


def sound_with_cover() -> bytes:
    """An MP3 with a cover picture, which demuxers show as a stream of pictures."""
    picture = b"\0image/png\0\x03\0" + png(8, 8)
    frame = b"APIC" + struct.pack(">I", len(picture)) + b"\0\0" + picture
    size = len(frame)
    length = bytes((size >> shift) & 127 for shift in (21, 14, 7, 0))
    silence = (b"\xff\xfb\x10\xc4" + bytes(100)) * 40  # 32 kbit/s, 44.1 kHz
    return b"ID3\x03\0\0" + length + frame + silence


def hostile_files(video: Path, seed: int) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of every hostile file."""
    rng = random.Random(seed)
    muxed = {suffix: remux(video, container) for suffix, container in CONTAINERS.items()}  # mp4: index at the end
    muxed["front.mp4"] = remux(video, "mp4", {"movflags": "faststart"})
    for suffix in ("front.mp4", "mkv", "avi", "ts"):
        for cut in CUTS:
            yield f"cut_{cut:g}.{suffix}", muxed[suffix][: max(1, int(len(muxed[suffix]) * cut))]
    yield "cut_0.5.end.mp4", muxed["mp4"][: len(muxed["mp4"]) // 2]
    for suffix in ("front.mp4", "mkv", "avi", "ts"):
        for share in FLIPS:
            yield f"flipped_{share:g}.{suffix}", flip(muxed[suffix], share, rng)
        yield f"flipped_header.{suffix}", flip(muxed[suffix], 0.002, rng, 0, 2048)
    middle = len(muxed["front.mp4"]) // 2
    yield "hole.mp4", muxed["front.mp4"][:middle] + bytes(8192) + muxed["front.mp4"][middle + 8192 :]
    yield "garbage_in_front.mp4", rng.randbytes(4096) + muxed["front.mp4"]
    yield "second_half.ts", muxed["ts"][len(muxed["ts"]) // 2 + 77 :]

    yield "empty.mp4", b""
    yield "one_byte.mp4", b"\0"
    yield "zeros.mp4", bytes(1 << 20)
    yield "random.mp4", rng.randbytes(1 << 18)
    yield "text.mp4", b"This is no video.\n" * 200
    yield "page.mp4", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    yield "record.mkv", b'{"error": "access denied"}'
    yield "archive.avi", b"PK\x03\x04" + rng.randbytes(2000)
    yield "picture_header.mp4", b"\xff\xd8\xff\xe0\0\x10JFIF\0" + rng.randbytes(100)
    yield "sound.mp4", sound()
    yield "cover.mp3", sound_with_cover()
    yield "playlist.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n"
    yield "concat.mp4", b"ffconcat version 1.0\nfile '/etc/passwd'\n"
    yield "session.mp4", b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"

    start = box(b"ftyp", b"isom\0\0\2\0isomiso2avc1mp41")
    yield "no_streams.mp4", start + box(b"moov", b"")
    yield "huge_box.mp4", start + struct.pack(">I4sQ", 1, b"moov", 1 << 62)
    yield "nested_boxes.mp4", start + b"".join(box(b"moov", b"", 1 << 30) for _ in range(500))
    mp4 = muxed["front.mp4"]
    yield "huge_pictures.mp4", patched(mp4, b"avc1\0\0\0\0\0\0", 18, struct.pack(">HH", 65535, 65535))
    yield "many_samples.mp4", patched(mp4, b"stsz", 8, struct.pack(">I", 0x7FFFFFFF))
    yield "huge_samples.mp4", patched(mp4, b"stsz", 12, struct.pack(">I", 0x7FFFFFFF) * 8)
    yield "long_frames.mp4", patched(mp4, b"stts", 12, struct.pack(">I", 0x7FFFFFFF))
    yield "offsets_beyond.mp4", patched(mp4, b"stco", 8, struct.pack(">I", 0x7FFFFFF0))
    yield "huge_picture.png", png(100_000, 100_000)
    yield "huge_picture.gif", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF0, 0, 0) + bytes(6) + b";"
    yield "huge_pictures.y4m", b"YUV4MPEG2 W60000 H60000 F25:1 C420\nFRAME\n" + bytes(1000)


def render(folder: Path, video: Path, seed: int) -> None:
    """Write the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    hostile = {f"hostile_{name}": content for name, content in hostile_files(video, seed)}
    good = {f"good.{suffix}": remux(video, container) for suffix, container in CONTAINERS.items()}
    for name, content in (hostile | good).items():
        (folder / name).write_bytes(content)
    print(f"{folder}: {len(hostile)} hostile files, {len(good)} good ones")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--video", type=Path, default=Path(__file__).resolve().parents[1] / "data" / "sample.mp4")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    render(arguments.folder, arguments.video, arguments.seed)
