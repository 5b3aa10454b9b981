"""Batches by visual tokens: they fit their budget, hold what runs together, and leave nobody waiting."""

from __future__ import annotations

import math
import random
import time
from concurrent.futures import Future
from itertools import chain, count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import odd_readers
import pytest
import tiny_models
import tiny_multimodal
import torch

from salcap import Caption, Frames, SaliencyCaptioner
from salcap.batching import ByTokens, ComingClip
from salcap.corpus import caption_corpus
from salcap.manifest import Item
from salcap.records import read_records
from salcap.sources import ClipSource

LENGTHS = [8, 8, 1, 3, 8, 2, 2, 8, 1, 8, 3, 3, 8, 8, 2, 1, 8, 8, 1, 3, 8, 8, 2, 8]
NAMES = [f"{length}-{number}.mp4" for number, length in enumerate(LENGTHS)]


def read(path: str, count: int, *rest: Any, **options: Any) -> Frames:
    """As many frames as the name begins with, if not more than are asked for; slow ones come late."""
    if "slow" in path:
        time.sleep(0.03)
    return odd_readers.read(path, min(count, int(path.split("-")[0])), *rest, **options)


def coming(length: int | None, name: str = "a") -> ComingClip:
    reading: Future[Frames] = Future()
    if length is None:
        reading.set_exception(OSError("gone"))
    else:
        reading.set_result(Frames(torch.zeros(length, 3, 4, 4, dtype=torch.uint8), torch.arange(length)))
    return ComingClip(Item(name), ClipSource(name, lambda *_: reading.result()), reading)


def taught(tokens: int, size: int | None = None, mixes: bool = False, most: int | None = None) -> ByTokens:
    """Knows from one clip of a frame that a frame has 10 tokens."""
    batches = ByTokens(tokens, size, mixes, 8, most)
    batches.learn(coming(1), Caption("x", visual_tokens=10))
    return batches


def run_through(batches: ByTokens, lengths: list[int | None]) -> list[list[int | None]]:
    """The batches' lengths of clips, one batch after another."""
    waiting, chosen = [coming(length, str(number)) for number, length in enumerate(lengths)], []
    while waiting:
        batch = batches.choose(iter(waiting))
        assert batch[0] is waiting[0]  # nobody is passed over for ever
        chosen.append([clip.shape and clip.shape[0] for clip in batch])
        waiting = [clip for clip in waiting if clip not in batch]
    return chosen


@pytest.mark.parametrize(
    "batches, lengths, expected",
    [
        (taught(40), [1, 4, 1, 4, 1, 1, 4], [[1, 1, 1, 1], [4], [4], [4]]),  # calls of equal clips
        (taught(40, mixes=True), [1, 4, 1, 2, 1, 2, 4], [[1, 1, 1], [4], [2, 2], [4]]),  # the likest go together
        (taught(40, mixes=True), [2, 1, 1], [[2, 1], [1]]),  # 3 clips of 20: padding counts
        (taught(40, 2), [1, 1, 1], [[1, 1], [1]]),
        (taught(15), [4, 4], [[4], [4]]),  # above the budget: alone
        (taught(40, most=20), [4, 4, 4], [[4, 4], [4]]),  # no clip has more than 20
        (taught(80), [9, 8], [[9], [8]]),  # 8 frames are chosen of 9: 80 tokens
        (taught(40), [None, 1, None, 1], [[None], [1, 1], [None]]),
        (ByTokens(40, None, True, 8, None), [1, 1], [[1], [1]]),  # nothing is known yet
    ],
)
def test_what_goes_together(batches: ByTokens, lengths: list[int | None], expected: list[list[int | None]]) -> None:
    assert run_through(batches, lengths) == expected


def test_no_more_is_looked_through_than_fills_some_batches() -> None:
    pulled = []

    def endless() -> Any:
        while True:
            pulled.append(coming(None if len(pulled) % 3 == 2 else 2))
            yield pulled[-1]

    assert len(taught(40, mixes=True).choose(endless())) == 2
    assert len(pulled) < 10


def test_what_is_known_of_a_shape_counts() -> None:
    batches = taught(40)
    batches.learn(coming(4), Caption("x", visual_tokens=12))  # pruned to a number for the clip
    assert run_through(batches, [4, 4, 4, 4, 2, 2]) == [[4, 4, 4], [4], [2, 2]]
    batches.shrink([coming(4), coming(4)])
    assert (batches.tokens, batches.shrunk) == (24, "batch_tokens 24")
    assert run_through(batches, [4, 4, 4]) == [[4, 4], [4]]


@pytest.mark.parametrize("tokens, size", [(0, None), (5, 0)])
def test_wrong_budgets_fail(tokens: int, size: int | None) -> None:
    with pytest.raises(ValueError, match=f"must be at least 1, got {tokens} and {size}"):
        ByTokens(tokens, size, True, 8, None)


def caption_all(
    captioner: SaliencyCaptioner, out: Path, names: list[str], **options: Any
) -> tuple[list[Any], list[Any]]:
    """Records, and for each call of the captioner the frames of its clips."""
    generate, calls = captioner.captioner.generate, []

    def spy(clips: Any, *rest: Any, **generation: Any) -> Any:
        calls.append([len(clip) for clip in clips])
        return generate(clips, *rest, **generation)

    captioner.captioner.generate = spy  # type: ignore[method-assign]
    try:
        options = {"num_frames": 8, "max_new_tokens": 3, "num_workers": 0, "reader": read, **options}
        caption_corpus(captioner, names, out, **options)
    finally:
        del captioner.captioner.generate
    return list(read_records(out)), calls


@pytest.fixture(scope="module")
def mini() -> SaliencyCaptioner:
    """16 tokens a frame, of which it keeps 8; stacks clips of equal length."""
    tiny = tiny_models.mini()
    return SaliencyCaptioner.from_pretrained(
        tiny.model, tiny.processor, saliency="center", mode="prune", keep_ratio=0.5
    )


@pytest.fixture(scope="module")
def chat() -> SaliencyCaptioner:
    """Pads clips of any length to one call."""
    tiny = tiny_multimodal.FAMILIES["internvl"]()
    return SaliencyCaptioner.from_pretrained(
        tiny.model, tiny.processor, saliency="center", mode="prune", policy="top", keep_ratio=0.5
    )


@pytest.mark.parametrize("kind", ["mini", "chat"])
def test_short_and_long_clips_in_a_corpus(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    captioner = request.getfixturevalue(kind)
    one, _ = caption_all(captioner, tmp_path / "one.jsonl", NAMES)
    each = one[2]["visual_tokens"]  # of a clip of one frame
    assert [record["visual_tokens"] for record in one] == [length * each for length in LENGTHS]
    records, calls = caption_all(captioner, tmp_path / "tokens.jsonl", NAMES, batch_tokens=16 * each)
    assert [record["id"] for record in records] == NAMES
    assert [record["caption"] for record in records] == [record["caption"] for record in one]
    assert sorted(chain.from_iterable(calls)) == sorted(LENGTHS)
    assert all(len(call) * max(call) <= 16 for call in calls)
    if kind == "mini":
        assert all(len(set(call)) == 1 for call in calls)
    _, by_size = caption_all(captioner, tmp_path / "size.jsonl", NAMES, batch_size=4)
    assert padding(calls) < padding(by_size) / 3
    assert max(len(call) * max(call) for call in by_size) == 32  # what memory must hold
    assert len(calls) <= 2 * math.ceil(sum(LENGTHS) / 16)


def padding(calls: list[list[int]]) -> float:
    """Share of padding, if each call is padded to its longest clip."""
    return 1 - sum(map(sum, calls)) / sum(len(call) * max(call) for call in calls)


def test_what_goes_together_does_not_depend_on_the_time_to_read(mini: SaliencyCaptioner, tmp_path: Path) -> None:
    shuffled = random.Random(0)
    late = [name.replace("-", "-slow" if shuffled.random() < 0.3 else "-fast") for name in NAMES]
    _, calls = caption_all(mini, tmp_path / "a.jsonl", NAMES, batch_tokens=128)
    _, slow = caption_all(mini, tmp_path / "b.jsonl", late, batch_tokens=128)
    assert calls == slow


def test_waiting_for_a_clip_is_time_to_read(mini: SaliencyCaptioner, tmp_path: Path, monkeypatch: Any) -> None:
    clock = count(step=9.0)
    monkeypatch.setattr("salcap.batching.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    records, _ = caption_all(mini, tmp_path / "a.jsonl", NAMES[:3], batch_tokens=128)
    assert all(9000.0 <= record["timings"]["read_ms"] < 18000.0 for record in records)


def test_out_of_memory_shrinks_the_budget(mini: SaliencyCaptioner, tmp_path: Path, monkeypatch: Any) -> None:
    generate = mini.captioner.generate

    def tight(clips: Any, *rest: Any, **generation: Any) -> Any:
        if sum(map(len, clips)) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(clips, *rest, **generation)

    monkeypatch.setattr(mini.captioner, "generate", tight)
    out, names = tmp_path / "a.jsonl", [f"2-{number}.mp4" for number in range(20)]
    caption_corpus(mini, names, out, batch_tokens=160, num_frames=8, max_new_tokens=3, num_workers=0, reader=read)
    records = list(read_records(out))
    assert [record["id"] for record in records] == names
    assert all(record["error"] is None for record in records)
    assert records[-1]["warnings"] == ["odd", "out of memory: captioned with batch_tokens 48"]
