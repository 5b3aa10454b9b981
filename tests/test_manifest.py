"""What is to be captioned."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from salcap.manifest import Item, find_items


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b.mp4", "a.mp4", ".hidden.mp4", "below/c.mkv", "below/.deep/d.mp4"):
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    "source, recursive, expected",
    [
        ("clips", False, ["clips/a.mp4", "clips/b.mp4"]),
        ("clips", True, ["clips/a.mp4", "clips/b.mp4", "clips/below/c.mkv"]),
        ("clips/*.mp4", False, ["clips/a.mp4", "clips/b.mp4"]),
        ("clips/**/*.mkv", False, ["clips/below/c.mkv"]),
        ("missing.mp4", False, ["missing.mp4"]),
        ("http://host/a.mp4", False, ["http://host/a.mp4"]),
    ],
)
def test_folders_and_patterns(folder: Path, source: str, recursive: bool, expected: list[str]) -> None:
    items = find_items([source], recursive)
    assert [item.path for item in items] == [item.id for item in items] == expected


def test_what_lies_beside_videos_is_left_out_of_a_folder_and_told(folder: Path, caplog) -> None:
    for name in ("a.srt", "README.MD", "odd.name"):
        (folder / "clips" / name).touch()
    assert [item.path for item in find_items(["clips"])] == ["clips/a.mp4", "clips/b.mp4", "clips/odd.name"]
    assert "left out of clips: 2 files that are no videos by name, as README.MD" in caplog.text
    assert find_items(["clips/a.srt"]) == [Item("clips/a.srt")]  # who names it means it


def test_what_salcap_writes_beside_videos_is_none(folder: Path) -> None:
    """Or the parts of a run would disagree on the list, once the first has begun."""
    for name in (
        "out.jsonl",
        "out.jsonl.settings",
        "out.jsonl.exports",
        "out.1-of-2.jsonl.settings",
        "out.csv.partial",
        "out.parquet",
    ):
        (folder / "clips" / name).touch()
    assert [item.path for item in find_items(["clips"])] == ["clips/a.mp4", "clips/b.mp4"]


def test_links_to_folders_are_followed_but_not_in_circles(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "e.mp4").touch()
    (folder / "clips" / "a-link").symlink_to(folder / "elsewhere")
    (folder / "clips" / "below" / "up").symlink_to(folder / "clips")
    (folder / "elsewhere" / "self").symlink_to(folder / "elsewhere")
    names = ["a-link/e.mp4", "a.mp4", "b.mp4", "below/c.mkv"]
    assert [item.path for item in find_items(["clips"], recursive=True)] == [f"clips/{name}" for name in names]


def test_a_folder_is_read_once_however_many_links_lead_to_it(folder: Path) -> None:
    clips = folder / "clips"
    for name in "pqrstuvw":
        (clips / name).mkdir()
        (clips / name / "v.mp4").touch()
        for other in "pqrstuvw":
            (clips / name / f"to-{other}").symlink_to(clips / other)
    (clips / "a-first").symlink_to(clips / "below")
    names = ["a.mp4", "b.mp4", "below/c.mkv", *(f"{name}/v.mp4" for name in "pqrstuvw")]
    assert [item.path for item in find_items(["clips"], recursive=True)] == [f"clips/{name}" for name in names]


def test_a_folder_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    listed = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:  # as for who may not, which root may
        if path.name == "below":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert len(find_items(["clips"])) == 2
    assert len(find_items(["clips"], recursive=True)) == 2
    assert "left out of clips: folder clips/below, which cannot be read (Permission denied)" in caplog.text
    with pytest.raises(PermissionError, match="clips/below"):
        find_items(["clips/below"])


def test_an_id_is_text_whatever_a_files_name_is(folder: Path) -> None:
    (folder / "clips" / "a.mp4").rename(folder / "clips" / "\udcff.mp4")
    items = find_items(["clips"])
    assert [(item.path, item.id) for item in items] == [
        ("clips/b.mp4", "clips/b.mp4"),
        ("clips/\udcff.mp4", "clips/\\udcff.mp4"),
    ]
    assert find_items(["clips"], start_seconds=1.0)[1].id == "clips/\\udcff.mp4#t=1"


def test_a_file_whose_name_looks_like_a_pattern_is_itself(folder: Path) -> None:
    (folder / "a[1].mp4").touch()
    assert find_items(["a[1].mp4"]) == [Item("a[1].mp4")]


def test_manifests(folder: Path) -> None:
    clips = folder / "clips"
    (clips / "m.txt").write_text("a.mp4\n\n/abs/b.mp4\n")
    assert find_items([clips / "m.txt"]) == [Item(str(clips / "a.mp4")), Item("/abs/b.mp4")]
    rows = [{"path": "a.mp4", "id": "x", "fps": 3}, {"path": "a.mp4", "start_seconds": 2, "end_seconds": 3.5}]
    expected = [Item(str(clips / "a.mp4"), "x"), Item(str(clips / "a.mp4"), "", 2.0, 3.5)]
    assert expected[1].id == f"{clips / 'a.mp4'}#t=2,3.5"
    (clips / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert find_items([clips / "m.jsonl"]) == expected
    (clips / "n.jsonl").write_text('{"path": "a.mp4", "id": 0}\n{"path": "b.mp4", "id": 1}\n')
    assert [item.id for item in find_items([clips / "n.jsonl"])] == ["0", "1"]
    (clips / "m.csv").write_text("path,id,start_seconds,end_seconds\na.mp4,x,,\na.mp4,,2,3.5\n")
    assert find_items([clips / "m.csv"]) == expected
    assert find_items([clips / "m.csv"], start_seconds=1.0) == [Item(str(clips / "a.mp4"), "x", 1.0), expected[1]]


@pytest.mark.parametrize(
    "name, content",
    [
        ("m.csv", "path, start_seconds, end_seconds\na.mp4, 1, 2\n"),
        ("m.csv", "path , start_seconds\t,end_seconds,\n a.mp4 ,1 , 2 ,\n\n"),
        ("m.csv", "path,start,end\na.mp4,1,2\n"),
        ("m.csv", 'start, end, "video"\n1, 2, "a.mp4"\n'),
        ("M.CSV", "\ufeffpath,start,end\r\na.mp4,1,2\r\n"),
        ("m.jsonl", '{"path ": " a.mp4", "start": 1, "end": "2 "}\n'),
        ("m.jsonl", '{"video": "a.mp4", "start_seconds": 1, "end": 2, "id": null}\n'),
    ],
)
def test_columns_by_every_name_and_with_blanks(tmp_path: Path, name: str, content: str, caplog: Any) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert find_items([tmp_path / name]) == [Item(str(tmp_path / "a.mp4"), "", 1.0, 2.0)]
    assert caplog.text == ""


def test_a_blank_that_is_part_of_a_files_name_stays(tmp_path: Path) -> None:
    (tmp_path / " a.mp4").touch()
    (tmp_path / "m.txt").write_text(" a.mp4\n b.mp4 \n")
    assert [item.path for item in find_items([tmp_path / "m.txt"])] == [
        str(tmp_path / " a.mp4"),
        str(tmp_path / "b.mp4"),
    ]


def test_columns_that_are_not_read_are_named_once(tmp_path: Path, caplog: Any) -> None:
    rows = [{"path": "a.mp4", "id": " x", "fps": 3, "video": "v"}, {"path": "b.mp4", "fps": 3, "state": "NY", "": 1}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [item.id for item in find_items([tmp_path / "m.jsonl"])] == ["x", str(tmp_path / "b.mp4")]
    assert [record.getMessage() for record in caplog.records] == [
        f"manifest {tmp_path / 'm.jsonl'}: these columns are not read: 'fps', 'video', 'state'"
    ]


@pytest.mark.parametrize(
    "column, meant",
    [
        ("Path", "path"),
        ("ID", "id"),
        ("Start", "start_seconds"),
        ("start time", "start_seconds"),
        ("startSeconds", "start_seconds"),
        ("start-seconds", "start_seconds"),
        ("clip_start", "start_seconds"),
        ("start_ms", "start_seconds"),
        ("start_second", "start_seconds"),
        ("begin", "start_seconds"),
        ("strat", "start_seconds"),
        ("sart_seconds", "start_seconds"),
        ("from", "start_seconds"),
        ("END", "end_seconds"),
        ("end (s)", "end_seconds"),
        ("endtime", "end_seconds"),
        ("ned_seconds", "end_seconds"),
        ("end_frame", "end_seconds"),
        ("to", "end_seconds"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_column_that_nearly_matches_fails(tmp_path: Path, column: str, meant: str, suffix: str) -> None:
    row = {column: "1"} if meant == "path" else {"path": "a.mp4", column: "1"}
    manifest = tmp_path / f"m{suffix}"
    manifest.write_text(f"{','.join(row)}\n{','.join(row.values())}\n" if suffix == ".csv" else f"{json.dumps(row)}\n")
    with pytest.raises(ValueError, match=re.escape(f"unknown column {column!r}; did you mean {meant!r}?")):
        find_items([manifest])


@pytest.mark.parametrize(
    "column",
    [
        "weekend",
        "trend",
        "state",
        "stat",
        "stars",
        "video_id",
        "duration",
        "idx",
        "stop_reason",
        "end_user",
        "start_word",
    ],
)
def test_columns_that_only_look_alike_do_not_fail(tmp_path: Path, column: str) -> None:
    (tmp_path / "m.csv").write_text(f"path,{column}\na.mp4,1\n")
    assert find_items([tmp_path / "m.csv"]) == [Item(str(tmp_path / "a.mp4"))]


def test_spreadsheets_and_pandas_leave_gaps(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,id\na.mp4,1\n,,\n  ,\n")
    assert [item.id for item in find_items([tmp_path / "m.csv"])] == ["1"]
    rows = [{"path": "a.mp4", "id": float("nan"), "end": float("inf")}, {"path": "b.mp4", "id": 7.0}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [item.id for item in find_items([tmp_path / "m.jsonl"])] == [str(tmp_path / "a.mp4"), "7"]
    (tmp_path / "m.jsonl").write_text('{"path": "a.mp4", "id": ["x"]}')
    with pytest.raises(ValueError, match=r"id must be text or a number, got \['x'\]"):
        find_items([tmp_path / "m.jsonl"])


def test_a_column_beside_the_one_that_it_resembles_is_not_read(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "m.csv").write_text("path,start_seconds,start_frame\na.mp4,1,25\n")
    assert find_items([tmp_path / "m.csv"]) == [Item(str(tmp_path / "a.mp4"), "", 1.0)]
    assert "not read: 'start_frame'" in caplog.text


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("m.jsonl", '{"path": "a"}\n{"id": "b"}\n', "line 2: expected a path"),
        ("m.jsonl", "path\n", "cannot be read as .jsonl"),
        ("m.csv", "path,start_seconds\na,soon\n", "line 2: start_seconds must be a number of seconds, got 'soon'"),
        ("m.csv", "path,start_seconds,end_seconds\na,3,2\n", "line 2: a clip must start .* got 3.0 to 2.0 s"),
        ("m.csv", "path,start_seconds\na,nan\n", "line 2: a clip must start"),
        ("m.csv", "path,start,start_seconds\na,1,2\n", "columns 'start', 'start_seconds' are for the same thing"),
        ("m.csv", "path, path\na,b\n", "the columns 'path', 'path' are for the same thing"),
        ("m.csv", "path;start;end\na;1;2\n", "columns must be separated by commas, got 'path;start;end'"),
        (
            "m.csv",
            "file,start\na,1\n",
            r"none of the columns 'file', 'start' contains it; allowed: path \(or video\), id, start",
        ),
        ("m.csv", "path,start\na,b.mp4,1\n", "line 2 has 3 values for 2 columns"),
        ("m.jsonl", '{"path": "a", "start": true}\n', "line 1: start must be a number of seconds, got True"),
        ("m.jsonl", '["a"]\n', r"line 1: expected an object with a path, got \['a'\]"),
        ("m.txt", "\n", "names no videos"),
        ("m.txt", "a\na\n", "comes twice"),
    ],
)
def test_wrong_manifests_fail(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        find_items([tmp_path / name])


@pytest.mark.parametrize(
    "source, message", [("clips/below/.deep/..", "--recursive"), ("*.avi", "no file matches"), ("empty", "no videos")]
)
def test_nothing_to_do_fails(folder: Path, source: str, message: str) -> None:
    (folder / "empty").mkdir()
    (folder / "clips" / "below" / "c.mkv").rename(folder / "clips" / "below" / ".deep" / "c.mkv")
    with pytest.raises(ValueError, match=message):
        find_items([source])
