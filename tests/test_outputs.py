"""Caption files."""

from __future__ import annotations

import json

import pytest

from salcap.caption import Caption
from salcap.outputs import CaptionFile, check_output

GOOD = Caption("a <b> & c \u2014 caf\u00e9", "a.mp4", 1.25, 3725.0005, frame_pts_seconds=(1.5,))
BAD = Caption(None, "b.mp4", error="cannot read")


def write_captions(path, captions, **options):
    with CaptionFile.opened(path, 1, **options) as file:
        for caption in captions:
            file.write(caption)


def test_jsonl_holds_every_record(tmp_path):
    write_captions(tmp_path / "out.jsonl", [GOOD, BAD])
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert records[0]["caption"] == GOOD.text
    assert records[0]["frame_pts_seconds"] == [1.5]
    assert (records[1]["path"], records[1]["caption"], records[1]["error"]) == ("b.mp4", None, "cannot read")


def test_what_came_before_a_crash_is_in_the_file(tmp_path):
    path = tmp_path / "out.jsonl"

    def crash() -> None:
        with CaptionFile.opened(path, 2) as file:
            file.write(GOOD)
            assert len(path.read_text().splitlines()) == 1  # at once, not when the file is closed
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crash()
    assert json.loads(path.read_text())["caption"] == GOOD.text


def test_vtt(tmp_path):
    write_captions(tmp_path / "out.vtt", [GOOD])
    assert (tmp_path / "out.vtt").read_text(encoding="utf-8") == (
        "WEBVTT\n\n00:00:01.250 --> 01:02:05.000\na &lt;b&gt; &amp; c \u2014 caf\u00e9\n\n"
    )


def test_srt(tmp_path):
    write_captions(tmp_path / "out.srt", [GOOD, BAD])
    assert (tmp_path / "out.srt").read_text(encoding="utf-8") == (
        "1\n00:00:01,250 --> 01:02:05,000\na <b> & c \u2014 caf\u00e9\n\n"
    )


@pytest.mark.parametrize(
    "name, num_videos, message",
    [
        ("out.txt", 1, "'.txt', allowed: .jsonl, .vtt, .srt"),
        ("out.vtt", 2, "belong to one video, got 2"),
        ("missing/out.jsonl", 1, "does not exist"),
        ("there.jsonl", 1, "--overwrite"),
    ],
)
def test_check_output_fails(tmp_path, name, num_videos, message):
    (tmp_path / "there.jsonl").touch()
    with pytest.raises(ValueError, match=message):
        check_output(tmp_path / name, num_videos)
    assert check_output(tmp_path / "there.jsonl", 5, overwrite=True) == tmp_path / "there.jsonl"
