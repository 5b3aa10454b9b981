"""Mutated videos of every container; scripts/fuzz_reader.py is the long form."""

from __future__ import annotations

import pytest
import tiny_models
from video_factory import ROOT, load_script

from salcap import SaliencyCaptioner
from salcap.records import read_records


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")  # for the script's own import of another
    return load_script("fuzz_reader")


def test_each_mutant_has_one_record_and_none_ends_the_run(script, tmp_path):
    tiny = tiny_models.mini()
    captioner = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor)
    result = script.fuzz(captioner, tmp_path, 60, num_frames=2, num_workers=1, max_new_tokens=2)
    records = list(read_records(tmp_path / "records.jsonl"))
    assert [record["id"] for record in records] == sorted(map(str, (tmp_path / "mutants").iterdir()))
    assert {name: result[name] for name in ("videos", "records", "duplicates", "missing")} == {
        "videos": 60, "records": 60, "duplicates": 0, "missing": 0,
    }  # fmt: skip
    assert result["other_outcome_than_reader"] == 0
    assert result["captioned"] + sum(result["error_classes"].values()) == 60
    assert 10 < result["captioned"] < 55  # neither untouched nor destroyed
    assert 0 < result["largest_read_seconds"] <= 60


def test_mutants_are_of_every_container_and_kind_and_the_same_again(script):
    seeds = {suffix: bytes(range(256)) * 4 + suffix.encode() for suffix in script.KINDS}
    made = list(script.mutants(seeds, 400, seed=3))
    assert made == list(script.mutants(seeds, 400, seed=3))
    assert made[:40] != list(script.mutants(seeds, 40, seed=4))
    assert {name.partition(".")[2] for name, _ in made} == set(script.KINDS)
    assert {mutation for name, _ in made for mutation in name.partition(".")[0].split("-")[1:]} == set(script.MUTATIONS)
    assert sum(data == seeds[name.partition(".")[2]] for name, data in made) < 12  # a field may hold the value already
    for data in (b"\0", b"ab"):
        for _, mutant in script.mutants(dict.fromkeys("abcde", data), 200, seed=0):
            assert len(mutant) > 0


def test_a_seed_that_cannot_be_read_is_told(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "KINDS", {"mp4": script.KINDS["mp4"]})
    monkeypatch.setattr(script, "write_seed", lambda kind: b"no video")
    with pytest.raises(ValueError, match=r"seeds must be read .*seed\.mp4': 'VideoDecodeError'"):
        script.fuzz(None, tmp_path, 1, num_workers=1)
