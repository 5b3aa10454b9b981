"""caption_dataset on a real local Ray instance of two workers."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from video_factory import ROOT, load_script, make_video

import salcap
from salcap.record_parts import RecordParts, read_parts
from salcap.records import read_records, settings_path

FAST = {"num_frames": 1, "num_workers": 0, "max_new_tokens": 6}


PATIENCE = {  # on a busy machine
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
}


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'salcap[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATIENCE.items():
            patch.setenv(name, value)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six clips, and a file that is none."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(6):
        make_video(folder / f"{number}.mp4", 4 + number, size=(48, 64))
    (folder / "broken.mp4").write_text("no video")
    return folder


def without_timings(records) -> dict[str, dict]:
    records = list(records)
    by_id = {record["id"]: {**record, "timings": None} for record in records}
    assert len(by_id) == len(records)  # no duplicate
    return by_id


def test_a_run_that_loses_a_worker_goes_on_to_the_records_of_one_process(cluster, folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")  # for the script's own import of another
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.parquet"
    captioner = salcap.SaliencyCaptioner.from_pretrained("salcap-mini")
    salcap.caption_corpus(captioner, sorted(map(str, folder.iterdir())), whole, **FAST)
    expected = without_timings(read_records(whole))
    with RecordParts(output) as parts:  # as if an earlier run had been ended
        parts.begin(json.loads(settings_path(whole).read_text()))
        parts.add(expected[str(folder / "3.mp4")])
        parts.add({**expected[str(folder / "broken.mp4")], "error_class": "ReadTimeout"})

    seen, killed = [], []

    def progress(record, done, total):
        seen.append((done, total))
        if not killed:
            killed.append(load_script("ray_kill").kill_a_worker())

    summary = salcap.ray.caption_dataset(folder, output, num_actors=2, retry_failed=True, progress=progress, **FAST)
    assert killed
    assert not psutil.pid_exists(killed[0])
    assert seen == [(done, 6) for done in range(1, 7)]
    assert without_timings(read_parts(output)) == expected
    assert (summary.num_items, summary.num_new, summary.records) == (7, 6, str(output))
    assert summary.errors == {"VideoDecodeError": 1}

    again = salcap.ray.caption_dataset([folder / "*.mp4"], output, progress=progress, **FAST)
    assert (again.num_items, again.num_new, again.num_failed, len(seen)) == (7, 0, 1, 6)
    with pytest.raises(ValueError, match=r"made with other settings \(num_beams: none, now 2\)"):
        salcap.ray.caption_dataset(folder, output, num_beams=2, **FAST)


def test_a_clip_that_its_worker_does_not_survive_costs_itself_only(cluster, folder, tmp_path):
    def load():
        captioner = salcap.SaliencyCaptioner.from_pretrained("salcap-mini", keep_ratio=0.25)
        generate = captioner.captioner.generate

        def fatal(clips, *rest, **generation):
            if any(str(clip.source).endswith("1.mp4") for clip in clips):
                os.kill(os.getpid(), signal.SIGKILL)
            return generate(clips, *rest, **generation)

        captioner.captioner.generate = fatal
        return captioner

    output = tmp_path / "out.jsonl"
    paths = [folder / f"{number}.mp4" for number in range(3)]
    summary = salcap.ray.caption_dataset(paths, output, model=load, num_actors=1, max_task_retries=0, **FAST)
    records = without_timings(read_parts(output))
    assert summary.errors == {"WorkerDied": 1}
    assert {Path(name).name: record["error_class"] for name, record in records.items()} == {
        "0.mp4": None, "1.mp4": "WorkerDied", "2.mp4": None,
    }  # fmt: skip
    good, bad = (records[str(path)] for path in paths[:2])
    assert bad["error"] == f"{paths[1]}: each worker that captioned it died"
    assert (bad["keep_ratio"], bad["model"], bad["caption"]) == (0.25, good["model"], None)
    assert bad.keys() == good.keys()


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"num_frames": 0}, ValueError, "frames, got 0"),
        ({"max_new_tokenz": 4}, ValueError, "max_new_tokenz"),
        ({"model": lambda: "mini"}, TypeError, "function that loads a SaliencyCaptioner, got 'mini'"),
        ({"model": lambda: None, "mode": "none"}, ValueError, r"options \['mode'\] belong into the function"),
        ({"num_actors": 0}, ValueError, "num_actors must be at least 1, got 0"),
        ({"num_gpus": -1}, ValueError, "num_gpus must be at least 0, got -1"),
        ({"paths": "nothing/*.mp4"}, ValueError, "no file matches"),
        ({"output": "out.csv"}, ValueError, "allowed: .jsonl, .parquet"),
    ],
)
def test_wrong_settings_fail_before_any_video(cluster, folder, tmp_path, options, error, message):
    arguments = {"paths": folder, "output": tmp_path / "out.jsonl", **FAST, **options}
    with pytest.raises(error, match=message):
        salcap.ray.caption_dataset(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_without_ray_the_error_names_the_extra(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'salcap\[ray\]'"):
        salcap.ray.caption_dataset(folder, tmp_path / "out.jsonl")
