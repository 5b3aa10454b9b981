"""The comparison: which arms there are, how they take turns, and what their captions are said to be worth."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_models
import torch
from test_cli import run
from test_evaluation_captions import CANDIDATES, REFERENCES

from salcap.caption import Caption
from salcap.datasets.captioned_videos import CaptionedItem, create_set
from salcap.evaluation.arm_records import arm_records
from salcap.evaluation.bootstrap import paired_bootstrap
from salcap.evaluation.captions import bleu_of_counts, score_report
from salcap.evaluation.compare import NONE, Arm, ArmRun, list_arms, run_arms
from salcap.evaluation.comparison import compare, judge, verdict
from salcap.evaluation.evaluate import describe_runs
from salcap.frames import Frames
from salcap.saliency import SaliencyModel, create_saliency
from salcap.saliency_captioner import SaliencyCaptioner

SET = create_set("videos", None, [CaptionedItem("0", None, ("a cat",))])
ARMS = [
    NONE,
    Arm("center", "prune", "top", 0.5),
    Arm("spectral_residual", "prune", "top", 0.5),
    Arm("center", "prune", "foveate", 0.25),
    Arm(None, "prune", "pool", 0.25),
]


# --- bootstrap ---


def test_interval_of_means():
    rng = np.random.default_rng(3)
    theirs = rng.normal(size=400)
    ours = theirs + rng.normal(0.3, 1.0, 400)
    found = paired_bootstrap(ours, theirs, draws=4000)
    apart = ours - theirs
    assert found.value == pytest.approx(apart.mean())
    half = 1.96 * apart.std() / 20
    assert (found.low, found.high) == pytest.approx((apart.mean() - half, apart.mean() + half), abs=half / 10)
    assert found.is_significant
    other = paired_bootstrap(theirs, ours, draws=4000)
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low))


def test_items_are_drawn_for_both_alike():
    theirs = np.random.default_rng(0).normal(0, 100, 50)
    found = paired_bootstrap(theirs + 0.25, theirs)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    same = paired_bootstrap(theirs, theirs)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert not same.is_significant


def test_score_of_a_set_that_is_no_mean():
    counts = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 2.0]])  # such as right and all: 4 of 8, not the mean of shares
    found = paired_bootstrap(counts, np.tile([1.0, 4.0], (3, 1)), lambda means: means[:, 0] / means[:, 1])
    assert found.value == pytest.approx(4 / 8 - 1 / 4)


@pytest.mark.parametrize(
    "ours, theirs, options",
    [
        (np.zeros(3), np.zeros(2), {}),
        (np.zeros(0), np.zeros(0), {}),
        (np.zeros((3, 2)), np.zeros((3, 2)), {}),
        (np.zeros(3), np.zeros(3), {"draws": 0}),
    ],
)
def test_bootstrap_refuses(ours, theirs, options):
    with pytest.raises(ValueError, match="expected"):
        paired_bootstrap(ours, theirs, **options)


def test_bleu_of_counts_is_bleu(java):
    report = score_report(REFERENCES, CANDIDATES, ["bleu"])
    counts = np.array([report.bleu_counts[key] for key in CANDIDATES])
    wanted = [report.scores[f"bleu_{n}"] for n in (1, 2, 3, 4)]
    assert bleu_of_counts(counts.sum(0, keepdims=True))[0] == pytest.approx(wanted, abs=1e-9)
    assert bleu_of_counts(counts.mean(0, keepdims=True))[0] == pytest.approx(wanted, abs=1e-4)  # no 4-gram matches


# --- arms ---


def test_unknown_names_are_refused_where_they_would_do_nothing():
    with pytest.raises(ValueError, match="unknown policy 'nonsense'"):
        list_arms(["center"], ["prune"], ["nonsense"], [1.0])
    with pytest.raises(ValueError, match="unknown mode 'prun'"):
        list_arms(["center"], ["scale+prun"], ["top"], [0.5])
    with pytest.raises(ValueError, match="teacher 'centre' is none of saliency, none, center"):
        compare(SET, saliency=("none", "center"), teacher="centre")


def test_arms_that_cannot_differ_are_one():
    arms = list_arms(["none", "center", "uva_net"], ["prune"], ["top", "random", "pool"], [0.25, 1.0])
    assert [arm.name for arm in arms] == ["none", "center top 0.25", "uva_net top 0.25", "random 0.25", "pool 0.25"]
    arms = list_arms(["center"], ["none", "scale", "scale+prune", "zoom"], ["top", "pool"], [0.5])
    assert [arm.name for arm in arms] == [
        "none", "center scale", "center scale+prune top 0.5", "center scale+prune pool 0.5", "center zoom",
    ]  # fmt: skip


class Counting(SaliencyModel):
    """Another backbone's maps, and what it was asked for."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone, self.name, self.seen = create_saliency(name), name, []

    def forward(self, pixels, pts_seconds=None):
        self.seen.append(pixels)
        return self.backbone(pixels, pts_seconds)


@pytest.fixture(scope="module")
def captioner():
    tiny = tiny_models.git()
    return SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, saliency="uniform", mode="none")


def frames(seed: int) -> Frames:
    pixels = torch.randint(0, 256, (2, 3, 48, 40), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Frames(pixels, torch.arange(2.0, dtype=torch.float64), f"clip {seed}")


def test_arms_caption_as_they_would_alone(captioner):
    reads = []

    def reader(seed):
        def read(**options):
            reads.append(seed)
            return frames(seed)

        return read

    def broken(**options):
        raise OSError("no such disk")

    backbones = {name: Counting(name) for name in ("center", "spectral_residual")}
    clips = [("a", reader(0)), ("b", reader(1)), ("broken", broken), ("c", reader(2)), ("d", reader(3))]
    steps = []
    request = {"num_frames": 2, "max_new_tokens": 5}
    runs, failures = run_arms(
        captioner, ARMS, backbones, clips, batch_size=2, progress=lambda *step: steps.append(step), **request
    )
    assert failures == {"broken": "no such disk"}
    assert sum(count for count, _ in steps) == pytest.approx(len(clips))
    assert {total for _, total in steps} == {len(clips)}
    assert len(steps) == 3 * len(ARMS)  # it moves on within a batch
    assert reads == [0, 1, 2, 3]
    assert len(backbones["center"].seen) == 4 + 2 * 2  # once; for the memory each arm sees the first batch
    for arm in ARMS:
        assert list(runs[arm].captions) == list("abcd")
        options = {} if arm == NONE else {"policy": arm.policy, "keep_ratio": arm.keep_ratio}
        alone = SaliencyCaptioner.from_pretrained(
            captioner.captioner.model,
            tiny_models.git().processor,
            saliency=arm.saliency or "uniform",
            mode=arm.mode,
            **options,
        )
        for seed, key in enumerate("abcd"):
            mine, wanted = runs[arm].captions[key], alone.caption(frames(seed), **request)
            assert (mine.text, mine.visual_tokens) == (wanted.text, wanted.visual_tokens)
            assert ("saliency_ms" in mine.timings) == (arm != NONE)
    texts = {arm: [c.text for c in runs[arm].captions.values()] for arm in ARMS}
    assert len({tuple(found) for found in texts.values()}) > 2  # the arms do differ on this model
    for key in "abcd":  # made once, counted for both
        both = [runs[arm].captions[key].timings["saliency_ms"] for arm in (ARMS[1], ARMS[3])]
        assert both[0] == both[1] > 0


def test_a_clip_that_one_arm_cannot_caption_counts_for_none(captioner):
    class Fails(SaliencyModel):
        name = "fails"

        def forward(self, pixels, pts_seconds=None):
            if pixels[0, 0, 0, 0] == frames(1).pixels[0, 0, 0, 0] / 255:
                raise RuntimeError("lens cap on")
            return pixels.mean(1)

    arms = [NONE, Arm("fails", "prune", "top", 0.5)]
    clips = [(str(seed), lambda seed=seed, **_: frames(seed)) for seed in range(3)]
    runs, failures = run_arms(captioner, arms, {"fails": Fails()}, clips, num_frames=2, max_new_tokens=3)
    assert failures == {"1": "fails top 0.5: lens cap on"}
    assert all(list(run.captions) == ["0", "2"] for run in runs.values())


def test_a_killed_comparison_goes_on_where_it_was(captioner, tmp_path, monkeypatch):
    request = {"num_frames": 2, "batch_size": 2, "max_new_tokens": 5}
    settings = describe_runs([captioner] * len(ARMS), SET, **request)
    backbones = {name: create_saliency(name) for name in ("center", "spectral_residual")}
    clips = [(str(seed), lambda seed=seed, **_: frames(seed)) for seed in range(5)]
    turns, steps = [], []

    class Stop(BaseException):
        """Not seen by what catches errors."""

    def compared(stop_after: int, **changed):
        del turns[:], steps[:]
        generate = captioner.captioner.generate

        def counted(clips, *rest, **generation):
            if len(turns) == stop_after:
                raise Stop
            turns.append([clip.source for clip in clips])
            return generate(clips, *rest, **generation)

        runs = {arm: replace(run, **changed) for arm, run in zip(ARMS, settings, strict=True)}
        with monkeypatch.context() as patch, arm_records(tmp_path, runs, SET.times_sha256) as (files, _):
            patch.setattr(captioner.captioner, "generate", counted)
            return run_arms(
                captioner, ARMS, backbones, clips, files=files, progress=lambda *step: steps.append(step), **request
            )

    whole, _ = run_arms(captioner, ARMS, backbones, clips, **request)
    with pytest.raises(Stop):
        compared(stop_after=5 + 5 + 2)  # warmed up, one batch, and two arms of the second
    kept = {path.name: path.read_text() for path in sorted(tmp_path.glob("*.jsonl"))}
    assert list(kept) == [
        "00-none.jsonl", "01-center-top-0.5.jsonl", "02-spectral_residual-top-0.5.jsonl",
        "03-center-foveate-0.25.jsonl", "04-pool-0.25.jsonl",
    ]  # fmt: skip
    assert [len(text.splitlines()) for text in kept.values()] == [2, 4, 4, 2, 2]
    with (tmp_path / "04-pool-0.25.jsonl").open("a") as file:
        file.write('{"id": "2", "cap')  # cut off by the kill
    with pytest.raises(ValueError, match=r"00-none.jsonl was made with other settings \(batch_size: 2, now 3\)"):
        compared(stop_after=99, batch_size=3)
    runs, failures = compared(stop_after=99)
    assert failures == {}
    assert turns[5:] == [["2", "3"]] * 3 + [["4"]] * 5  # after warming up again
    assert sum(count for count, _ in steps) == pytest.approx(11 / 5)
    assert {total for _, total in steps} == {11 / 5}
    for arm, path in zip(ARMS, sorted(tmp_path.glob("*.jsonl")), strict=True):
        assert path.read_text().startswith(kept[path.name])
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert [record["id"] for record in records] == list(runs[arm].captions) == list("01234")
        assert [c.text for c in runs[arm].captions.values()] == [c.text for c in whole[arm].captions.values()]
        assert [c.timings for c in runs[arm].captions.values()] == [record["timings"] for record in records]
        assert runs[arm].peak_memory_mib == records[0]["peak_memory_mib"]
    again, _ = compared(stop_after=0)  # nothing is left to do
    assert again == runs


# --- judgement ---


def made(texts: dict[str, str], ms: float) -> ArmRun:
    timings = {"read_ms": 1000.0, "encode_ms": ms, "decode_ms": 1.0}
    return ArmRun({k: Caption(text, visual_tokens=9, timings=timings) for k, text in texts.items()}, 1.5)


def test_judgement(java):
    references = {str(i): [f"a dog number {i} runs over the wet green grass", "some animal"] for i in range(40)}
    right = {key: texts[0] for key, texts in references.items()}
    wrong = dict.fromkeys(references, "two people talk in a room")
    student, teacher, pool = Arm("center", "prune", "top", 0.5), Arm("uva_net", "prune", "top", 0.5), ARMS[-1]
    pool = Arm(None, "prune", "pool", 0.5)
    runs = {NONE: made(wrong, 9.0), student: made(right, 4.0), teacher: made(right, 6.5), pool: made(wrong, 4.0)}
    rows, missing = judge(runs, references, teacher="uva_net", metrics=["bleu", "cider"], draws=200)
    none, ours, theirs, control = rows
    assert missing == {}
    assert [row.arm for row in rows] == list(runs)
    assert set(none.against) == set()
    assert set(ours.against) == {"none", "teacher", "pool"}
    assert set(theirs.against) == {"none", "pool"}
    assert set(control.against) == {"none", "teacher"}
    assert ours.scores["bleu_4"] == pytest.approx(1, abs=1e-6)
    assert none.scores["bleu_4"] < 0.01
    assert ours.verdicts["teacher"] == "no significant difference"
    assert ours.verdicts["none"].startswith("better: bleu_1, ")
    assert "worse" not in ours.verdicts["none"]
    assert control.verdicts["teacher"].startswith("worse: bleu_1, ")
    gap = ours.against["none"]["cider"]
    assert gap.value == pytest.approx(ours.scores["cider"] - none.scores["cider"], abs=1e-6)
    assert gap.low <= gap.value <= gap.high
    bleu = ours.against["none"]["bleu_4"]
    assert bleu.value == pytest.approx(ours.scores["bleu_4"] - none.scores["bleu_4"], abs=1e-6)
    assert ours.ms["total"] == {"p50": 5.0, "p95": 5.0}
    assert "read" not in ours.ms
    assert ours.time_saved == pytest.approx(0.5)
    assert theirs.time_saved == pytest.approx(0.25)
    with pytest.raises(ValueError, match="no clip"):
        judge({NONE: made({}, 1.0)}, references)


def test_no_verdict_of_one_clip_or_of_rounding():
    alone = paired_bootstrap(np.array([1.0]), np.array([0.25]))
    assert (alone.value, alone.low, alone.high) == (0.75, 0.0, 0.75)
    rounded = paired_bootstrap(np.full(20, 3e-13), np.zeros(20))
    assert verdict({"cider": alone, "bleu_4": rounded}) == "no significant difference"


def test_verdict_in_words():
    good, bad, even = (paired_bootstrap(np.full(9, x), np.zeros(9)) for x in (1.0, -1.0, 0.0))
    assert verdict({"cider": good, "meteor": bad, "rouge_l": even}) == "better: cider; worse: meteor"


def test_command(tmp_path, java, shared):
    root = shared / "data/captions/flickr8k"
    base = ("compare", "--dataset", "flickr8k-val", "--root", root, "--limit", 3, "--batch-size", 2, "--num-beams", 1)
    arms = ("--saliency", "none,center,spectral_residual", "--policy", "top,pool", "--keep-ratio", 0.25)
    result = run(
        *base,
        *arms,
        "--teacher",
        "center",
        "--draws",
        50,
        "--metrics",
        "bleu,cider",
        "--faithfulness",
        1,
        "--output",
        tmp_path / "out",
        "--json",
    )
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == record
    assert [row["arm"]["saliency"] for row in record["rows"]] == [None, "center", "spectral_residual", None]
    assert all(len(row["captions"]) == 3 and row["ms"]["encode"]["p50"] > 0 for row in record["rows"])
    assert [row["visual_tokens"] for row in record["rows"]] == [196, 49, 49, 49]
    again = run(*base, *arms, "--output", tmp_path / "out")
    assert again.exit_code == 2
    assert "exists, and holds a finished comparison" in again.stderr
    (tmp_path / "out" / "comparison.json").unlink()  # as if it had been killed before the end
    less = ("--metrics", "bleu", "--draws", 50, "--faithfulness", 1)
    again = run(*base, *arms, *less, "--output", tmp_path / "out", "--json")
    assert again.exit_code == 0, again.stderr
    rows = json.loads(again.stdout)["rows"]
    for name in ("captions", "ms", "peak_memory_mib"):
        assert [row[name] for row in rows] == [row[name] for row in record["rows"]]
    assert json.loads(again.stdout)["faithfulness"] == record["faithfulness"] != {}
    lines = (tmp_path / "out" / "comparison.csv").read_text().splitlines()
    assert len(lines) == 5
    assert lines[1].startswith("none,196,")
    for wrong, message in (("--saliency", "centre"), ("--policy", "topp"), ("--keep-ratio", "0")):
        failed = run(*base, wrong, message)
        assert failed.exit_code == 2
        assert message in failed.stderr
