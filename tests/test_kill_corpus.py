"""scripts/kill_corpus.py counts what kills cost: nothing where a run goes on, else every fault."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from video_factory import ROOT, load_script

RUN = """
import json, sys, time
from pathlib import Path
clips, output, fault = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
killed = output.exists() and output.name.startswith("killed")
whole = output.read_bytes().rpartition(b"\\n")[0].splitlines(True) if output.exists() else []
done = set() if killed and fault == "duplicates" else {json.loads(line)["id"] for line in whole}
with output.open("ab", buffering=0) as file:
    for clip in sorted(map(str, clips.iterdir())):
        if clip in done or killed and fault == "missing":
            continue
        caption = "other" if killed and fault == "different_captions" else clip
        file.write(json.dumps({"id": clip, "caption": caption, "error_class": None}).encode() + b"\\n")
        time.sleep(0.03)
"""


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")  # for the script's own import of another
    return load_script("kill_corpus")


@pytest.mark.parametrize("fault", ["", "duplicates", "missing", "different_captions"])
def test_each_fault_of_a_run_is_counted(script, tmp_path, monkeypatch, fault):
    def touch(folder: Path, num_clips: int) -> None:
        folder.mkdir()
        for number in range(num_clips):
            (folder / f"{number:04d}.mp4").touch()

    monkeypatch.setattr(script, "render_clips", touch)
    monkeypatch.setattr(
        script,
        "start",
        lambda clips, output, _: subprocess.Popen([sys.executable, "-c", RUN, str(clips), str(output), fault]),
    )
    result = script.kill_runs(tmp_path, 2, 60, seed=1)
    assert result["runs_killed"] == len(result["records_at_kills"])
    assert result["runs_killed"] == 2 or fault == "missing"  # which ends before it can be killed
    assert result["records"] == 60 + result["duplicates"] - result["missing"]
    found = {name for name in ("duplicates", "missing", "different_captions") if result[name]}
    assert found == ({fault} if fault else set())
    assert result["readers_that_outlived"] == 0


def test_more_kills_than_clips_fail(script, tmp_path):
    with pytest.raises(ValueError, match="got 5 and 5"):
        script.kill_runs(tmp_path, 5, 5)
