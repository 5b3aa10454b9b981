"""Caption metrics against published values, and what may not reach the user: hangs, orphans, zeros, broken files."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from salcap.evaluation import captions as scoring
from salcap.evaluation.caption_files import load_candidates, load_captions, load_references, match_ids
from salcap.evaluation.captions import score_captions, score_report, score_reports
from salcap.evaluation.java import MetricError, meteor, ptb_tokenize, run_java, spice
from salcap.records import to_line

REFERENCES = {
    "a": ["A man is playing a guitar.", "a guy plays music"],
    "b": ["two dogs run in the snow", "dogs\nrun"],
    "c": ["Un café à Paris", "the cafe ||| in Paris"],
    "d": ["a cat"],
}
CANDIDATES = {"a": "a man plays guitar", "b": "a dog runs\nin snow", "c": "a café in paris ||| now", "d": ""}
QUICK = ("bleu", "rouge_l")
EXPECTED_NAMES = {f"bleu_{n}": f"Bleu_{n}" for n in (1, 2, 3, 4)} | {"rouge_l": "ROUGE_L", "cider": "CIDEr"}


def fake_java(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a Python program named java on PATH, and nothing else."""
    script, program = folder / "java.py", folder / "java"
    script.write_text(f"import json, os, subprocess, sys, time\n{body}\n")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that was killed and waits to be collected does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_dead(pid: int) -> bool:
    """True once the kernel has carried out a kill that was sent already."""
    for _ in range(200):
        if not is_alive(pid):
            return True
        time.sleep(0.01)
    return False


def assert_expected(scores: dict[str, float | None], expected: dict[str, float]) -> None:
    """All that was scored is as expected, and BLEU and ROUGE-L were."""
    rounded = {EXPECTED_NAMES[name]: round(value, 6) for name, value in scores.items() if value is not None}
    assert len(rounded) >= 5
    assert rounded == {name: expected[name] for name in rounded}


@pytest.mark.parametrize("name", ["ds235_blip.json.gz", "ds235_git.json.gz"])
def test_stored_sets_to_six_digits(name: str, shared: Path, java: str) -> None:
    folder = shared / "data" / "scorer"
    scores = score_captions(
        load_references(folder / name), load_candidates(folder / name), ("bleu", "rouge_l", "cider")
    )
    assert_expected(scores, json.loads((folder / "expected.json").read_text())[name])
    assert scores["meteor"] is None
    assert scores["spice"] is None


def test_coco_annotation_file_is_the_same_references(shared: Path) -> None:
    folder = shared / "data" / "scorer"
    assert load_captions(folder / "ds235_references.json.gz") == load_references(folder / "ds235_blip.json.gz")


@pytest.mark.parametrize(
    "oracle, metrics",
    [("lowest_sen_id_vs_other_19", ("bleu", "rouge_l", "cider")), ("constant_a_man_is_talking_vs_all_20", QUICK)],
)
def test_msrvtt_oracles_to_six_digits(oracle: str, metrics: tuple[str, ...], shared: Path, java: str) -> None:
    with gzip.open(shared / "data" / "captions" / "msrvtt" / "test_videodatainfo.json.gz") as file:
        sentences = sorted(json.load(file)["sentences"], key=lambda sentence: sentence["sen_id"])
    references: dict[str, list[str]] = {}
    for sentence in sentences:
        references.setdefault(sentence["video_id"], []).append(sentence["caption"])
    if oracle.startswith("lowest"):
        candidates = {key: texts.pop(0) for key, texts in references.items()}
    else:
        candidates = dict.fromkeys(references, "a man is talking")
    expected = json.loads((shared / "data" / "scorer" / "expected.json").read_text())["msrvtt_test_2990"][oracle]
    assert_expected(score_captions(references, candidates, metrics), expected)


def test_all_on_hostile_captions_and_a_path_with_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, java: str
) -> None:
    """METEOR's values are those of pycocoevalcap's own Meteor class on the same tokens."""
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    (folder / "data").symlink_to(scoring._METEOR_JAR.parent / "data")
    jar = shutil.copy(scoring._METEOR_JAR, folder / "meteor.jar")  # a copy: Java would follow a link out of the folder
    monkeypatch.setattr(scoring, "_METEOR_JAR", jar)
    report = score_report(REFERENCES, CANDIDATES)
    assert list(report.scores) == list(scoring.SCORES)
    assert report.scores["meteor"] == pytest.approx(0.3438152807, abs=1e-9)
    each = {"a": 0.3901285781, "b": 0.3063535385, "c": 0.4051295701, "d": 0.0}
    assert report.per_caption["meteor"] == pytest.approx(each, abs=1e-9)
    assert report.reasons == {"spice": "not asked for"}
    assert "PTBTokenizer" in str(report.tokenizer)


def test_order_and_line_breaks_do_not_matter(java: str) -> None:
    turned = {key: CANDIDATES[key].replace("\n", "\u2028") for key in reversed(CANDIDATES)}
    assert score_captions(REFERENCES, turned, QUICK) == score_captions(REFERENCES, CANDIDATES, QUICK)


def test_several_sets_score_as_each_alone(java: str) -> None:
    sets = [CANDIDATES, {key: texts[0] for key, texts in REFERENCES.items()}, dict.fromkeys(REFERENCES, "a dog")]
    for several, candidates in zip(score_reports(REFERENCES, sets), sets, strict=True):
        alone = score_report(REFERENCES, candidates)
        assert several.scores == alone.scores
        assert several.per_caption == alone.per_caption
        assert all(np.array_equal(several.bleu_counts[key], alone.bleu_counts[key]) for key in REFERENCES)
    with pytest.raises(ValueError, match="1 candidates without reference: 'z'"):
        score_reports(REFERENCES, [CANDIDATES, CANDIDATES | {"z": "a dog"}])


def test_a_perfect_caption_and_an_empty_one(java: str) -> None:
    references = {"a": ["A man rides a red horse!"], "b": ["two dogs run in deep snow"]}
    report = score_report(references, {"a": "a man rides a red horse", "b": ""}, QUICK)
    assert report.per_caption["bleu_4"] == pytest.approx({"a": 1.0, "b": 0.0}, abs=1e-6)
    assert report.per_caption["rouge_l"] == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize(
    "references, message", [({"a": ["a dog"]}, "needs 2 clips"), ({"a": [""], "b": ["."]}, "no reference holds a word")]
)
def test_cider_is_null_where_it_is_undefined(references: dict[str, list[str]], message: str, java: str) -> None:
    report = score_report(references, dict.fromkeys(references, "a dog"), ("cider",))
    assert report.scores["cider"] is None
    assert message in report.reasons["cider"]


def test_tokenizer_keeps_lines_and_writes_nothing_beside_its_jar(tmp_path: Path, java: str) -> None:
    folder = tmp_path / "a folder: with spaces"
    folder.mkdir()
    jar = shutil.copy(scoring.PTB_JAR, folder / scoring.PTB_JAR.name)
    captions = ["A man's (red) dóg…", "", "x\ny\r\nz\x0b\x85\u2028w", "\ud800 lone", "100% <b>of</b> it 😀", "the end"]
    lines = ptb_tokenize(captions, jar, 60)
    assert lines[0] == ["a", "man", "'s", "-lrb-", "red", "-rrb-", "dóg", "..."]
    assert lines[1] == [""]
    assert lines[2] == ["x", "y", "z", "w"]
    assert lines[-1] == ["the", "end"]
    assert len(lines) == len(captions)
    assert list(folder.iterdir()) == [jar]


@pytest.mark.parametrize("name", ["ds235_blip.json.gz", "ds235_git.json.gz"])
def test_stored_sets_without_java(name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = shared / "data" / "scorer"
    report = score_report(load_references(folder / name), load_candidates(folder / name))
    expected = json.loads((folder / "expected.json").read_text())[name]
    scores = {EXPECTED_NAMES[key]: report.scores[key] for key in EXPECTED_NAMES}
    assert scores == pytest.approx(expected, abs=1e-6)
    assert report.scores["meteor"] is None
    assert "no java on PATH" in report.reasons["meteor"]


def test_without_java_what_needs_it_is_null_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    report = score_report(REFERENCES, CANDIDATES, scoring.METRICS)
    assert {name for name, score in report.scores.items() if score is None} == {"meteor", "spice"}
    assert report.scores["bleu_1"] == pytest.approx(0.627536, abs=1e-6)
    assert report.tokenizer == scoring.TOKENIZERS["python"]
    (record,) = caplog.records
    assert record.message.startswith("not scored: meteor, spice: no tokens: no java on PATH")
    report = score_report(REFERENCES, CANDIDATES, tokenizer="java")
    assert set(report.scores.values()) == {None}
    assert report.tokenizer is None


def test_meteor_gets_java_tokens_whatever_splits_the_rest(java: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def remember(references, sets, jar, timeout_seconds):
        asked.append((references, sets))
        return [(0.5, [0.5] * len(candidates)) for candidates in sets]

    monkeypatch.setattr(scoring, "meteor", remember)
    by_java = score_report(REFERENCES, CANDIDATES)
    monkeypatch.setattr(scoring.ptb, "tokenize", lambda caption: ["x"])
    by_python = score_report(REFERENCES, CANDIDATES, tokenizer="python")
    assert asked[0] == asked[1]
    assert asked[0][0][0] == ["a man is playing a guitar", "a guy plays music"]
    assert by_python.scores["bleu_1"] == pytest.approx(1.0, abs=1e-6)
    assert [report.tokenizer for report in (by_java, by_python)] == list(scoring.TOKENIZERS.values())


@pytest.mark.parametrize(
    "body, message",
    [
        ("sys.stderr.write('Error: out of\\nmemory'); sys.exit(3)", "status 3: Error: out of memory"),
        ("print('one line')", "gave 1 lines for 13 captions"),
        ("sys.stdin.close()", "gave 0 lines for 13 captions"),
    ],
)
def test_a_failing_tokenizer_is_told(body: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java(tmp_path, body, monkeypatch)
    report = score_report(REFERENCES | {"e": ["x"]}, CANDIDATES | {"e": "y"}, QUICK)
    assert report.scores["bleu_4"] is None
    assert message in report.reasons["bleu_4"]


def test_one_failing_metric_leaves_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, java: str) -> None:
    (tmp_path / "meteor.jar").write_bytes(b"no jar")
    monkeypatch.setattr(scoring, "_METEOR_JAR", tmp_path / "meteor.jar")
    report = score_report(REFERENCES, CANDIDATES, ("bleu", "meteor"))
    assert report.scores["meteor"] is None
    assert "jarfile meteor.jar" in report.reasons["meteor"]
    assert report.scores["bleu_1"] == pytest.approx(0.627536, abs=1e-6)


def test_meteor_that_dies_between_answers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java(tmp_path, "sys.stdin.readline(); print('1 2', flush=True); sys.exit('heap is full')", monkeypatch)
    with pytest.raises(MetricError, match="status 1: heap is full"):
        meteor([["a"], ["b"], ["c"]], [["a", "b", "c"]], tmp_path / "meteor.jar", 60)


def test_a_hanging_program_is_stopped_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java, pids = tmp_path / "java", tmp_path / "pids"
    java.write_text(f'#!/bin/sh\n/bin/sleep 600 &\necho $$ $! > "{pids}"\nwait\n')  # as a wrapper script would
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MetricError, match="took more than 2 s and was stopped"):
        meteor([["a"]], [["a"]], tmp_path / "meteor.jar", 2)
    assert len(pids.read_text().split()) == 2
    for pid in map(int, pids.read_text().split()):
        assert wait_until_dead(pid)


def test_an_interrupt_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java(tmp_path, "time.sleep(600)", monkeypatch)
    pids = []

    def interrupted(process) -> None:
        pids.append(process.pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_java(["-version"], tmp_path, 600, interrupted)
    assert not is_alive(pids[0])


def test_spice_names_the_models_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match=r"stanford-corenlp-3\.6\.0-models\.jar"):
        spice([["a"]], [["a"]], tmp_path / "spice-1.0.jar", 60)


def test_spice_reads_its_answer_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    for part in ("", "-models"):
        (tmp_path / "lib" / f"stanford-corenlp-3.6.0{part}.jar").touch()
    body = (
        "items = json.load(open(sys.argv[4]))\n"
        "f = {item['image_id']: len(item['test']) / 10 for item in items}\n"
        "answer = [{'image_id': key, 'scores': {'All': {'f': f[key]}}} for key in sorted(f, reverse=True)]\n"
        "json.dump(answer, open(sys.argv[sys.argv.index('-out') + 1], 'w'))"
    )
    fake_java(tmp_path, body, monkeypatch)
    found = spice([["a"], ["b"]], [["xx", "xxxx"], ["x", "x"]], tmp_path / "spice-1.0.jar", 60)
    assert found == [(pytest.approx(0.3), [0.2, 0.4]), (pytest.approx(0.1), [0.1, 0.1])]


@pytest.mark.parametrize(
    "references, candidates, message",
    [
        ({}, {}, "nothing to score"),
        ({"a": ["x"], "b": ["y"]}, {"a": "x"}, "1 references without candidate: 'b'"),
        ({"a": ["x"]}, {"a": "x", "v7": "y"}, "1 candidates without reference: 'v7'"),
        ({"a": []}, {"a": "x"}, "1 ids have no reference caption: 'a'"),
        ({"a": ["x"]}, {"a": None}, r"candidates\['a'\]: a caption must be a string, got None"),
        ({"a": ["x", 3]}, {"a": "x"}, r"references\['a'\]: a caption must be a string, got 3"),
        ({"a": ["x"]}, {"a": ["x", "y"]}, "exactly one candidate: 'a'"),
    ],
)
def test_faulty_captions_fail_before_any_work(references, candidates, message, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=message):
        score_captions(references, candidates)


def test_unknown_tokenizer_fails() -> None:
    with pytest.raises(ValueError, match="unknown tokenizer 'nltk', allowed: auto, java, python"):
        score_captions(REFERENCES, CANDIDATES, tokenizer="nltk")


def test_unknown_metric_fails() -> None:
    with pytest.raises(ValueError, match=r"unknown metric 'rouge', allowed: .*did you mean 'rouge_l'"):
        score_captions(REFERENCES, CANDIDATES, ("bleu", "rouge"))


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    "content, expected",
    [
        ({"a": "één", "b": ["x", "y"]}, {"a": ["één"], "b": ["x", "y"]}),
        ([{"image_id": 7, "caption": "x"}, {"image_id": 9, "caption": "y", "id": 1}], {"7": ["x"], "9": ["y"]}),
        ({"images": [], "annotations": [{"image_id": "v", "caption": c} for c in "xy"]}, {"v": ["x", "y"]}),
        ({"annotations": []}, {}),
        ([{"video_id": "v", "caption": "x"}, {"video_id": 9, "caption": "y"}], {"v": ["x"], "9": ["y"]}),
        ([{"id": "v", "caption": "x", "error_class": None}], {"v": ["x"]}),
        ({"version": "1", "result": [{"video_id": "v", "caption": "x"}], "external_data": {}}, {"v": ["x"]}),
        (
            {"v": [{"caption": "x"}, {"image_id": "v", "caption": "y"}], "w": {"caption": "z"}},
            {"v": ["x", "y"], "w": ["z"]},
        ),
        (
            {"id": "a dog", "caption": "a cat", "results": ["x"]},
            {"id": ["a dog"], "caption": ["a cat"], "results": ["x"]},
        ),
    ],
    ids=[
        *("mapping", "coco results", "coco annotations", "no annotations", "results by video_id", "a list of records"),
        *("results of the MSR-VTT challenge", "captions in objects", "odd names of videos"),
    ],
)
def test_load_captions(content, expected, pack, tmp_path: Path) -> None:
    path = tmp_path / "captions"
    path.write_bytes(pack(json.dumps(content, ensure_ascii=False).encode()))
    assert load_captions(path) == expected


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("num_lines", [1, 2])
@pytest.mark.parametrize("name", ["c.jsonl", "c.json"])  # the latter for who has renamed it
def test_load_captions_of_records(name: str, num_lines: int, pack, tmp_path: Path) -> None:
    """Records as `salcap caption` writes them, of whole videos and of windows."""
    records = [
        {"id": "a#1", "path": "a.mp4", "caption": "één", "error_class": None, "video": "a", "window": 1},
        {"id": "b", "path": "b.mp4", "caption": "y\u2028z", "error_class": None},
    ][:num_lines]
    path = tmp_path / (name if pack is bytes else f"{name}.gz")
    path.write_bytes(pack(b"".join(to_line(record) for record in records)))
    expected = {"a#1": ["één"], "b": ["y\u2028z"]}
    assert load_captions(path) == {record["id"]: expected[record["id"]] for record in records}


def test_load_captions_of_a_video_list(tmp_path: Path) -> None:
    """The file of the data set ``videos``, whose ids are the videos unless a line says another."""
    rows = [
        {"video": "a.mp4", "captions": ["x", "y"], "split": "val"},
        {"video": "b.mp4", "id": "b", "captions": ["z"]},
    ]
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert load_references(path) == {"a.mp4": ["x", "y"], "b": ["z"]}
    assert load_references(path, "val") == {"a.mp4": ["x", "y"]}


MSRVTT = {
    "info": {},
    "videos": [
        {"video_id": name, "split": split, "start time": 0, "end time": 9}
        for name, split in (("v1", "test"), ("v2", "validate"), ("v3", "test"))
    ],
    "sentences": [
        {"video_id": f"v{n}", "caption": c, "sen_id": ord(c)} for n, c in ((1, "x"), (2, "y"), (3, "z"), (1, "w"))
    ],
}


def test_load_references_of_msrvtts_annotation_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "videodatainfo.json"
    path.write_text(json.dumps(MSRVTT))
    assert load_references(path, "test") == {"v1": ["x", "w"], "v3": ["z"]}
    assert load_references(path, "val") == load_references(path, "validate") == {"v2": ["y"]}
    assert caplog.text == ""
    assert load_references(path) == {"v1": ["x", "w"], "v2": ["y"], "v3": ["z"]}
    assert "holds the splits test, validate; all of them are taken" in caplog.text
    with pytest.raises(ValueError, match=r"unknown split of .*'tests', allowed: test, validate"):
        load_references(path, "tests")
    path.write_text('{"v1": ["x"]}')
    with pytest.raises(ValueError, match="has no splits, got split 'test'"):
        load_references(path, "test")


def test_ids_that_are_paths_are_matched_to_names(caplog: pytest.LogCaptureFixture) -> None:
    truths = {"v1": ["x"], "v2": ["y"]}
    assert match_ids(truths, {"clips/v1.mp4": "x", "clips/v2.webm": "y"}) == {"v1": "x", "v2": "y"}
    assert "folder and suffix are left out, as in 'v1' for 'clips/v1.mp4'" in caplog.text
    caplog.clear()
    for candidates in (
        {"v1": "x", "clips/v2.mp4": "y"},  # one of them has a reference
        {"a/v1.mp4": "x", "b/v1.mp4": "y"},  # two would be one
        {"clips/w1.mp4": "x"},
    ):
        assert match_ids(truths, candidates) is candidates
    assert caplog.text == ""


def test_load_references_and_candidates_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "both.json"
    path.write_text(json.dumps({"references": {"a": ["x", "y"]}, "candidates": {"a": "z"}}))
    assert load_references(path) == {"a": ["x", "y"]}
    assert load_candidates(path) == {"a": "z"}
    with pytest.raises(ValueError, match="holds references and candidates; say which"):
        load_captions(path)


@pytest.mark.parametrize(
    "raw, message",
    [
        (b"a dog", "is not JSON"),
        (
            b'{"id": "a", "caption": "x", "error_class": null}\n{"id": "b", "cap',
            "is not JSON: line 2, Unterminated string",
        ),
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (gzip.compress(b'{"a": "x"}', mtime=0)[:-9], "is not JSON"),
        (b'{"a": 3}', "a: a caption must be a string, got 3"),
        (b'{"a": {"text": "x"}}', "a caption must be a string, got .*; allowed: JSON {id: caption or .*salcap caption"),
        (b'{"videos": [{"video_id": "v"}]}', "videos: a caption must be a string"),
        (b'[{"video": 1}]', "expected items with image_id, video_id or id and caption, got .*; allowed: JSON"),
        (b'[{"caption": "x"}]', "expected items with image_id, video_id or id and caption"),
        (b'["a", "b"]', "expected items with image_id, video_id or id and caption, got 'a'"),
        (b'"x"', "expected captions by id, got str; allowed: JSON {id"),
        (
            b'{"id": "a", "caption": null, "error_class": "VideoDecodeError"}',
            r"'a' has no .* it failed \(VideoDecodeError",
        ),
    ],
)
def test_load_captions_fails(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message) as failure:
        load_captions(path)
    assert str(path) in str(failure.value)


def test_load_candidates_fails_on_several_captions(tmp_path: Path) -> None:
    path = tmp_path / "candidates.json"
    path.write_text('{"a": ["x", "y"]}')
    with pytest.raises(ValueError, match="candidate 'a' must be one caption, got 2"):
        load_candidates(path)


def test_an_id_that_comes_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"a": "x", "a": "y"}')
    with pytest.raises(ValueError, match="'a' comes twice"):
        load_captions(tmp_path / "c.json")


def test_ids_that_pandas_made_floats_are_whole_numbers(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('[{"image_id": 1.0, "caption": "x"}]')
    assert load_captions(tmp_path / "c.json") == {"1": ["x"]}
