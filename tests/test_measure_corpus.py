"""scripts/measure_corpus.py on two clips and a tiny model."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest
import tiny_models
from video_factory import ROOT, load_script, make_video

from salcap import SaliencyCaptioner


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")  # for the script's own imports of others
    script = load_script("measure_corpus")
    tiny = tiny_models.mini()
    monkeypatch.setattr(script, "load", lambda: SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor))
    return script


def test_peaks_stay_when_memory_is_given_back(script):
    code = """if True:
        import mmap
        with mmap.mmap(-1, 200 * 2**20) as memory:
            for place in range(0, len(memory), mmap.PAGESIZE):
                memory[place] = 1
        print(flush=True)
        input()
    """
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert script.peak_mib(process.pid) > 200
        assert psutil.Process(process.pid).memory_info().rss < 100 * 2**20
        process.communicate(b"\n")
    assert script.peak_mib(process.pid) == 0


def test_clips_are_measured_and_failures_refused(script, tmp_path):
    paths = [str(make_video(tmp_path / f"{number}.mp4", 8)) for number in range(2)]
    memory = script.measure_memory(paths, num_frames=2, num_workers=1, max_new_tokens=2)
    assert memory["records"] == 2
    assert memory["readers_mib"] > 50  # a process that has torch
    assert memory["mib"] == memory["run_mib"] + memory["readers_mib"]
    found = script.measure_throughput(paths, 2, rounds=1, num_workers=0)
    assert found["ratio"] == pytest.approx(found["loop_seconds"] / found["corpus_seconds"], rel=0.01)
    assert 0 < found["model_busy"] < 1
    assert 0 < found["model_busy_in_loop"] < 1
    (tmp_path / "broken.mp4").write_text("no video")
    with pytest.raises(RuntimeError, match="'VideoDecodeError': 1"):
        script.measure_memory([*paths, str(tmp_path / "broken.mp4")], num_frames=2, num_workers=0)
    with pytest.raises(ValueError, match=r"must fill a batch, .* got 4 for 8"):
        script.measure(tmp_path / "none", 10, 1.0, few=4)
    assert not (tmp_path / "none").exists()
