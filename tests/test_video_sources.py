"""What videos are handed over in: file objects of every kind, and files that turn out to be something else."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from PIL import Image
from test_video_geometry import element
from video_factory import draw_number, make_video, read_number

from salcap import SaliencyCaptioner
from salcap.pictures import draw_saliency
from salcap.sources import clip_source
from salcap.video import VideoDecodeError, probe, read_frames


class Upload:
    """Like FastAPI's UploadFile: its methods are coroutines, and the file is inside."""

    filename = "clip.mp4"

    def __init__(self, file: Any) -> None:
        self.file = file

    async def read(self, size: int = -1) -> bytes:
        return self.file.read(size)

    async def seek(self, offset: int) -> None:
        self.file.seek(offset)


def spooled(path: Path, max_size: int) -> Any:
    file = tempfile.SpooledTemporaryFile(max_size=max_size)  # noqa: SIM115
    file.write(path.read_bytes())
    return file


def compressed(module: Any, path: Path) -> Any:
    packed = path.with_name(f"{module.__name__}.packed")
    packed.write_bytes(module.compress(path.read_bytes()))
    return module.open(packed)


def in_zip(path: Path) -> Any:
    with zipfile.ZipFile(path.with_name("a.zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "inside.mp4")
    return zipfile.ZipFile(path.with_name("a.zip")).open("inside.mp4")


def in_tar(path: Path) -> Any:
    with tarfile.open(path.with_name("a.tar"), "w") as archive:
        archive.add(path, "inside.mp4")
    return tarfile.open(path.with_name("a.tar")).extractfile("inside.mp4")


def in_memory(path: Path) -> Any:
    fsspec.filesystem("memory").pipe_file("/clip.mp4", path.read_bytes())
    return fsspec.filesystem("memory").open("/clip.mp4")


FILES: dict[str, Callable[[Path], Any]] = {
    "rb": lambda path: path.open("rb"),
    "r+b": lambda path: path.open("r+b"),
    "a+b": lambda path: path.open("a+b"),
    "unbuffered a+b": lambda path: path.open("a+b", buffering=0),
    "spooled": lambda path: spooled(path, 10**6),
    "spooled to disk": lambda path: spooled(path, 1),
    "upload": lambda path: Upload(spooled(path, 10**6)),
    "gzip": lambda path: compressed(gzip, path),
    "bz2": lambda path: compressed(bz2, path),
    "lzma": lambda path: compressed(lzma, path),
    "zip": in_zip,
    "tar": in_tar,
    "fsspec": lambda path: fsspec.filesystem("file").open(str(path), "r+b"),
    "fsspec in memory": in_memory,
}


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return make_video(tmp_path / "clip.mp4", 24)


@pytest.mark.parametrize("kind", FILES)
def test_a_file_object_of_any_readable_mode_is_read_and_not_written(video: Path, kind: str) -> None:
    before, expected = video.read_bytes(), read_frames(video, 3)
    file = FILES[kind](video)
    for _ in range(2):
        frames = read_frames(file, 3)
        assert torch.equal(frames.pixels, expected.pixels)
        assert torch.equal(frames.pts_seconds, expected.pts_seconds)
    assert not getattr(file, "closed", False)
    assert video.read_bytes() == before
    assert isinstance(frames.source, str | None)
    assert clip_source(file).name == frames.source
    assert probe(file).width == 160


def test_an_upload_is_captioned_and_drawn_under_its_own_name(video: Path, tmp_path: Path) -> None:
    upload = Upload(spooled(video, 10**6))
    captioner = SaliencyCaptioner.from_pretrained("salcap-mini")
    result = captioner.caption(upload, num_frames=2)
    assert result.error is None
    assert result.text == captioner.caption(str(video), num_frames=2).text
    assert read_frames(upload, 1).source == "clip.mp4"
    assert draw_saliency(upload, tmp_path / "a.png", "center").num_frames == 8


def test_a_temporary_file_has_no_number_for_a_name() -> None:
    with tempfile.TemporaryFile() as file:
        assert isinstance(file.name, int)
        file.write(b"no video")
        with pytest.raises(VideoDecodeError, match="<file object>"):
            read_frames(file)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda path: path.open("r"), "opened as text; open it with mode 'rb'"),
        (lambda path: io.StringIO("text"), "opened as text"),
        (lambda path: path.with_name("new").open("wb"), "opened only for writing; open it with mode 'rb'"),
        (lambda path: path.open("ab"), "opened only for writing"),
        (lambda path: os.fdopen(os.pipe()[0], "rb"), "cannot seek, such as a pipe or a download; read it and pass its"),
        (lambda path: type("Odd", (), {"read": lambda self, size: 7})(), r"read\(\) returns int, not bytes"),
    ],
)
def test_a_file_object_that_cannot_be_read_says_why(video: Path, make: Callable[[Path], Any], words: str) -> None:
    file = make(video)
    with pytest.raises(VideoDecodeError, match=words):
        read_frames(file)


TEXTS = {
    "the file is empty": b"",
    "a Git LFS pointer, not the video itself: run 'git lfs pull'": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    ),
    "an HTML page, .* it begins '<!DOCTYPE html>": b"\n<!DOCTYPE html>\n<html><body>404 Not Found</body></html>",
    "an HTML page, .* it begins '<!-- x -->": b"<!-- x -->\n<HTML lang='en'>" + "é".encode() * 4000,
    "XML, .*AccessDenied": b"<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code></Error>",
    "JSON, .*message": b'{"message": "rate limit exceeded"}',
    "text, not a video; it begins 'Not Found'": b"Not Found",
    "text, not a video; it begins 'caf": "café au lait\n".encode("utf-16"),
    "a playlist": b"#EXTM3U\n#EXTINF:5,\na.ts\n",
    "'git annex|text, not a video": b"/annex/objects/SHA256E-s1--0.mp4\n",
    "an AppleDouble file of macOS": b"\0\x05\x16\x07\0\x02\0\0Mac OS X        " + bytes(4000),
    "encrypted by OpenSSL": b"Salted__" + bytes(range(256)) * 20,
    "begins with 4096 zero bytes": bytes(100_000),
    "a ZIP archive": b"PK\x03\x04" + bytes(range(256)) * 20,
    "a compressed file": gzip.compress(bytes(range(256)) * 20),
    "a PDF document": b"%PDF-1.7\n" + bytes(range(256)) * 20,
}


@pytest.mark.parametrize("words", TEXTS)
def test_a_file_that_is_something_else_is_told_by_that(tmp_path: Path, words: str) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(TEXTS[words])
    for video in (path, TEXTS[words], path.open("a+b")):
        for read in (read_frames, probe):
            with pytest.raises(VideoDecodeError, match=words):
                read(video)


def animation(path: Path) -> Path:
    pictures = [Image.fromarray(draw_number(number, 96, 160)) for number in range(4)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    return path


@pytest.mark.parametrize("suffix", ["png", "avif", "gif"])
def test_animations_are_read(tmp_path: Path, suffix: str) -> None:
    frames = read_frames(animation(tmp_path / f"a.{suffix}"), 4)
    assert [read_number(picture) for picture in frames.pixels] == [0, 1, 2, 3]
    assert frames.pts_seconds.tolist() == pytest.approx([0, 0.1, 0.2, 0.3])


def test_an_animated_webp_is_refused_by_name_and_a_still_one_read(tmp_path: Path) -> None:
    path = animation(tmp_path / "a.mp4.webp").rename(tmp_path / "a.mp4")
    with pytest.raises(VideoDecodeError, match="an animated WebP, which FFmpeg does not decode: convert it"):
        read_frames(path)
    Image.fromarray(draw_number(5, 96, 160)).save(tmp_path / "a.webp")
    assert read_number(read_frames(tmp_path / "a.webp", 1).pixels[0]) == 5


def scrambled(data: bytes) -> bytes:
    """A transport stream whose packets of pictures say that they are scrambled, and are."""
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    return b"".join(
        packet[:3] + bytes([packet[3] | 0x80]) + packet[4:8] + bytes(byte ^ 0x5A for byte in packet[8:])
        if packet[1] & 0x1F == 1 and packet[2] == 0
        else packet
        for packet in packets
    )


def test_encrypted_streams_say_so(tmp_path: Path) -> None:
    for scheme in ("mp4", "mov"):
        path = make_video(
            tmp_path / f"a.{scheme}",
            24,
            mux_options={
                "encryption_scheme": "cenc-aes-ctr",
                "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
                "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
            },
        )
        for read in (read_frames, probe):
            with pytest.raises(VideoDecodeError, match="encrypted"):
                read(path)
    path = tmp_path / "a.ts"
    path.write_bytes(scrambled(make_video(path, 24).read_bytes()))
    with pytest.raises(VideoDecodeError, match="encrypted"):
        read_frames(path)
    from test_video_geometry import SEGMENT, TRACK, TRACKS, with_elements

    plain = make_video(tmp_path / "b.mkv", 24, mux_options={"live": "1"})
    key = element(0x5035, element(0x47E1, b"\x05") + element(0x47E2, bytes(range(16))))  # AES
    encoding = element(0x6D80, element(0x6240, element(0x5033, b"\x01") + key))
    plain.write_bytes(with_elements(plain.read_bytes(), (SEGMENT, TRACKS, TRACK), encoding))
    with pytest.raises(VideoDecodeError, match="encrypted"):
        read_frames(plain)
