"""Files made to read other files, reach the network or take all memory; each refusal next to an FFmpeg that does it."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import pytest
from PIL import Image
from video_factory import make_video

from salcap.video import VideoDecodeError, VideoLimits, probe, read_frames

IN_OPEN, IN_NONBLOCK = 0x20, 0o4000


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A video that no other file may lead to."""
    (tmp_path / "elsewhere").mkdir()
    return make_video(tmp_path / "elsewhere" / "secret.ts", 24)


@contextmanager
def opens(path: Path) -> Iterator[list[int]]:
    """How often anyone opens a file meanwhile, counted by the kernel: [count] when the block is left."""
    if sys.platform != "linux":
        pytest.skip("inotify is Linux's")
    libc, count = ctypes.CDLL(None, use_errno=True), [0]
    watch = libc.inotify_init1(IN_NONBLOCK)
    assert watch >= 0
    assert libc.inotify_add_watch(watch, os.fsencode(path), IN_OPEN) >= 0
    try:
        yield count
        while True:
            events = os.read(watch, 65536)
            while events:
                _, _, _, length = struct.unpack_from("iIII", events)
                count[0] += 1
                events = events[16 + length :]
    except BlockingIOError:
        pass
    finally:
        os.close(watch)


def playlist(target: str) -> str:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{target}\n#EXT-X-ENDLIST\n"


def concat(target: str) -> str:
    return f"ffconcat version 1.0\nfile '{target}'\n"


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "concat.txt", "concat.mp4"])
def test_a_script_opens_no_other_file(tmp_path: Path, secret: Path, name: str) -> None:
    path = tmp_path / name
    script, format = (playlist, "hls") if name.startswith("list") else (concat, "concat")
    path.write_text(script(str(secret)))
    with opens(secret) as count, av.open(str(path), format=format, options={"safe": "0"}) as container:
        next(container.decode(video=0))
    assert count[0] > 0  # FFmpeg left alone reads it: the script works
    for read in (read_frames, probe):
        with opens(secret) as count, pytest.raises(VideoDecodeError) as caught:
            read(path)
        assert count[0] == 0
        assert str(path) in str(caught.value)
        assert "is a playlist" in str(caught.value)


def test_a_movie_opens_no_data_that_it_keeps_elsewhere(tmp_path: Path, secret: Path) -> None:
    """QuickTime's data references, by which samples lie in another file."""
    data = make_video(tmp_path / "a.mov", 24).read_bytes()
    at = data.index(b"dref")
    name = os.fsencode(secret)
    alias = (
        bytearray(150) + struct.pack(">hH", 2, len(name)) + name + b"\0" * (len(name) % 2) + struct.pack(">hH", -1, 0)
    )
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + bytes(alias)
    old = struct.unpack(">I", data[at - 4 : at])[0]
    body = b"dref" + struct.pack(">II", 0, 1) + entry
    grown = bytearray(data[: at - 4] + struct.pack(">I", len(body) + 4) + body + data[at - 4 + old :])
    for box in (b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        start = grown.rindex(box, 0, at) - 4
        size = struct.unpack(">I", grown[start : start + 4])[0]
        grown[start : start + 4] = struct.pack(">I", size + len(body) + 4 - old)
    path = tmp_path / "b.mov"
    path.write_bytes(grown)
    trusting = {"enable_drefs": "1", "use_absolute_path": "1"}
    with opens(secret) as count, av.open(str(path), options=trusting):
        pass
    assert count[0] > 0
    with opens(secret) as count, pytest.raises(VideoDecodeError, match="no frame could be decoded"):
        read_frames(path)
    assert count[0] == 0


def test_no_url_is_reached(tmp_path: Path, secret: Path) -> None:
    hits: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(secret.read_bytes())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a.ts"
        path = tmp_path / "list.m3u8"
        path.write_text(playlist(url))
        with av.open(str(path), options={"protocol_whitelist": "file,http,tcp"}):
            assert hits
        hits.clear()
        for name in (url, f"concat:{url}|{url}", f"crypto:{url}", f"async:{url}", f"cache:{url}", str(path)):
            with pytest.raises(VideoDecodeError):
                read_frames(name)
        with pytest.raises(VideoDecodeError, match="only local files are read, not URLs"):
            read_frames(url)
        assert hits == []
    finally:
        server.shutdown()
        server.server_close()


def test_a_name_is_no_pattern_and_no_protocol(tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = tmp_path / "img001.png"
    Image.new("RGB", (32, 32)).save(first)
    with opens(first) as count, av.open("img%03d.png"):
        pass
    assert count[0] > 0
    names = ("img%03d.png", "img*.png", f"concat:{secret}", f"subfile,,start,0,end,0,,:{secret}", f"file:{secret}")
    with opens(first) as pictures, opens(secret) as videos:
        for name in names:
            with pytest.raises(VideoDecodeError, match="No such file"):
                read_frames(name)
        (tmp_path / "img%03d.png").write_bytes(first.read_bytes())
        with pytest.raises(VideoDecodeError, match="not on whitelist"):
            read_frames("img%03d.png")
    assert pictures[0] == 1  # the test's own copy
    assert videos[0] == 0


@pytest.mark.parametrize(
    "limits, words",
    [
        ({"max_pixels": 96 * 160 - 1}, "declares 160x96 pixels, at most 15359 are decoded (max_pixels)"),
        ({"max_bytes": 4 * 3 * 96 * 160 - 1}, "4 frames of 160x96 pixels take 184320 bytes"),
        ({"max_seconds": 1.9}, "2 s long, at most 2 s are read (max_seconds)"),
        ({"max_decoded_frames": 9}, "more than 9 frames to decode for those asked for (max_decoded_frames)"),
    ],
)
def test_limits_are_kept(tmp_path: Path, limits: dict[str, float], words: str) -> None:
    path = make_video(tmp_path / "a.mp4", 48)
    with pytest.raises(VideoDecodeError) as caught:
        read_frames(path, 4, limits=VideoLimits(**limits))  # type: ignore[arg-type]
    assert words in str(caught.value)
    generous = {"max_pixels": 128 * 256, "max_bytes": 4 * 3 * 96 * 160, "max_seconds": 2.0, "max_decoded_frames": 48}
    assert len(read_frames(path, 4, limits=VideoLimits(**generous))) == 4  # type: ignore[arg-type]


def test_a_size_asked_for_is_bounded_before_memory_is_taken(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 4)
    with pytest.raises(VideoDecodeError, match="max_bytes"):
        read_frames(path, 10**9)
    with pytest.raises(VideoDecodeError, match="max_bytes"):
        read_frames(path, size=(10**6, 10**6))


def test_a_limit_of_nothing_fails() -> None:
    with pytest.raises(ValueError, match="max_bytes must be above 0, got 0"):
        VideoLimits(max_bytes=0)
