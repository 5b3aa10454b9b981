"""Records as files for other programs."""

from __future__ import annotations

import csv
import json
import sys

import pytest

from salcap.caption import Caption
from salcap.outputs import check_output, export_records

GOOD = Caption("a <b> & c \u2014 caf\u00e9", "a.mp4", 1.25, 3725.0005, frame_pts_seconds=(1.5,))
BAD = Caption(None, "b.mp4", error="cannot read", error_class="VideoDecodeError")
SLY = Caption("one\n\n00:00:00.000 --> 00:00:09.000\r\ntwo", "c.mp4", 0.0, 1.0)


def records(*captions):
    return [{"id": f"{number}", **caption.to_dict()} for number, caption in enumerate(captions)]


def test_vtt(tmp_path):
    export_records(records(GOOD, BAD), tmp_path / "out.vtt")
    assert (tmp_path / "out.vtt").read_text(encoding="utf-8") == (
        "WEBVTT\n\n00:00:01.250 --> 01:02:05.000\na &lt;b&gt; &amp; c \u2014 caf\u00e9\n\n"
    )


def test_srt(tmp_path):
    export_records(records(GOOD, BAD, GOOD), tmp_path / "out.srt")
    cue = "00:00:01,250 --> 01:02:05,000\na <b> & c \u2014 caf\u00e9\n\n"
    assert (tmp_path / "out.srt").read_text(encoding="utf-8") == f"1\n{cue}2\n{cue}"


@pytest.mark.parametrize("suffix", [".vtt", ".srt"])
def test_cues_are_in_the_order_of_their_times(tmp_path, suffix):
    export_records(records(GOOD, SLY, BAD), tmp_path / f"out{suffix}")
    text = (tmp_path / f"out{suffix}").read_text(encoding="utf-8")
    assert text.index("one 00:00:00") < text.index("caf\u00e9")


@pytest.mark.parametrize("suffix, arrow", [(".vtt", "--&gt;"), (".srt", "-->")])
def test_a_caption_makes_no_cue_of_its_own(tmp_path, suffix, arrow):
    export_records(records(SLY), tmp_path / f"out{suffix}")
    assert (tmp_path / f"out{suffix}").read_text().endswith(f"\none 00:00:00.000 {arrow} 00:00:09.000 two\n\n")


def test_coco_results(tmp_path):
    named = [{**record, "id": name} for record, name in zip(records(GOOD, BAD, SLY), ("42", "9", "007"), strict=True)]
    export_records(named, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == [
        {"image_id": 42, "caption": GOOD.text},
        {"image_id": "007", "caption": SLY.text},
    ]


@pytest.mark.parametrize("start", "=+-@\t\r")
def test_csv_holds_no_formula(tmp_path, start):
    text = f'{start}HYPERLINK("http://x", "a")'
    export_records(records(Caption(text, text, 0.0, 1.0, score=-1.5), BAD), tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        good, bad = csv.DictReader(file)
    assert (good["caption"], good["path"], good["score"]) == (f"'{text}", f"'{text}", "-1.5")
    assert (bad["caption"], bad["error_class"], bad["error"]) == ("", "VideoDecodeError", "cannot read")


def test_a_name_that_is_no_unicode_is_spelt_out(tmp_path):
    named = records(Caption("x", "man/\udcff.mp4", 0.0, 1.0))
    export_records(named, tmp_path / "out.csv")
    export_records([{**record, "id": "\udcff"} for record in named], tmp_path / "out.json")
    assert "man/\\udcff.mp4" in (tmp_path / "out.csv").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))[0]["image_id"] == "\udcff"


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    export_records(records(GOOD, BAD), tmp_path / "out.parquet")
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["id"], row["caption"], row["start_seconds"]) for row in rows] == [
        ("0", GOOD.text, 1.25),
        ("1", None, None),
    ]


def test_an_export_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("kept")

    def broken():
        yield records(GOOD)[0]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        export_records(broken(), path)
    assert path.read_text() == "kept"
    assert [file.name for file in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.parametrize(
    "name, num_items, message",
    [
        ("out.txt", 1, "'.txt', allowed: .jsonl, .vtt, .srt"),
        ("out.vtt", 2, "belong to one video, got 2"),
        ("missing/out.jsonl", 1, "does not exist"),
        ("there.vtt", 1, "--overwrite"),
    ],
)
def test_check_output_fails(tmp_path, name, num_items, message):
    (tmp_path / "there.vtt").touch()
    with pytest.raises(ValueError, match=message):
        check_output(tmp_path / name, (".jsonl", ".vtt", ".srt"), num_items)
    assert check_output(tmp_path / "there.vtt", (".vtt",), 1, overwrite=True) == tmp_path / "there.vtt"


def test_suffixes_may_be_in_capitals(tmp_path):
    path = check_output(tmp_path / "OUT.VTT", (".vtt",), 1)
    export_records(records(GOOD), path)
    assert path.read_text(encoding="utf-8").startswith("WEBVTT")
    with pytest.raises(ValueError, match=r"\.vtt subtitles belong to one video"):
        check_output(path, (".vtt",), 2)
    (tmp_path / "OUT.JSONL").touch()
    check_output(tmp_path / "OUT.JSONL", (".jsonl",), 1)


def test_what_is_read_is_not_overwritten(tmp_path):
    video, link = tmp_path / "a.csv", tmp_path / "link.csv"
    video.touch()
    link.hardlink_to(video)
    inputs = ["https://x.org/a.mp4", "*.mp4", "nul\0", str(video)]
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"link\.csv, which is read; name another"):
            check_output(link, (".csv",), 1, overwrite, inputs)
    (tmp_path / "a.jsonl").touch()
    check_output(tmp_path / "a.jsonl", (".jsonl",), 1, inputs=[tmp_path / "a.jsonl"])  # records name their videos


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"salcap\[parquet\]"):
        check_output(tmp_path / "out.parquet", (".parquet",), 1)


def test_a_pyarrow_that_cannot_be_imported_tells_why(tmp_path, monkeypatch):
    (tmp_path / "pyarrow.py").write_text("raise ImportError('pyarrow requires NumPy 2.0 or newer')")
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"requires NumPy 2\.0"):
        check_output(tmp_path / "out.parquet", (".parquet",), 1)
