"""Batches side by side: what they share is the weights alone, and the captions are those of one at a time."""

from __future__ import annotations

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import odd_readers
import pytest
import tiny_models
import tiny_multimodal
import torch

from salcap import SaliencyCaptioner, SaliencyModel
from salcap.batch_captioner import fitting_streams, replicate
from salcap.corpus import caption_corpus

MAKERS = {**tiny_models.FAMILIES, **tiny_multimodal.FAMILIES, "mini": tiny_models.mini}
LIVELY = ("mini",)  # whose own weights say the same of all clips
NAMES = [f"slow{number}.mp4" for number in range(6)]
FAST = {"num_frames": 2, "max_new_tokens": 4, "num_workers": 0, "reader": odd_readers.read}


@pytest.fixture(autouse=True)
def two_threads():
    """As on two cores, wherever the tests run."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def load(family: str, **options: Any) -> SaliencyCaptioner:
    tiny = MAKERS[family]()
    if family in LIVELY:
        tiny_models.lively(tiny.model)
    captioner = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, saliency="center", mode="none")
    modes = [mode for mode in ("scale", "bias", "prune") if mode in captioner.captioner.modes]
    budget = {"keep_ratio": 0.5} if "prune" in modes else {}
    return captioner.with_weighting(mode="+".join(modes), strength=1.0, **budget, **options)


def run(captioner: SaliencyCaptioner, names: list[str] = NAMES, **options: Any) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    caption_corpus(captioner, names, progress=lambda record, *_: records.append(record), **{**FAST, **options})
    return records


@pytest.mark.parametrize("family", MAKERS)
def test_threads_that_share_a_captioner_take_turns(family: str) -> None:
    """Its hooks are on the model, where another thread's forward would run into them; a copy needs no turns."""
    captioner = load(family)
    copies = replicate(captioner), pickle.loads(pickle.dumps(captioner))
    clips = [odd_readers.read(name, 2, None, None, limits=None) for name in NAMES]
    expected = [captioner.caption(clip, max_new_tokens=4) for clip in clips]
    first, started, goes_on = captioner.captioner.generate_batch, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        started.set()
        goes_on.wait(20)
        return first(*arguments)

    captioner.captioner.generate_batch = slow  # of this one object
    with ThreadPoolExecutor(4) as pool:
        shared = [pool.submit(captioner.caption, clip, max_new_tokens=4) for clip in clips]
        assert started.wait(20)
        del captioner.captioner.generate_batch
        for copied in copies:
            assert copied.caption(clips[0], max_new_tokens=4).text == expected[0].text  # while the first is at work
        assert not any(future.done() for future in shared)
        goes_on.set()
        found = [future.result() for future in shared]
    assert [caption.text for caption in found] == [caption.text for caption in expected]
    assert [caption.score for caption in found] == pytest.approx([caption.score for caption in expected], abs=1e-6)


class Meeting(SaliencyModel):
    """A backbone whose calls wait until two of them are at work."""

    barrier = threading.Barrier(2, timeout=20)

    def forward(self, pixels, pts_seconds=None):
        self.barrier.wait()
        return pixels.mean(1)


def tensors(captioner: SaliencyCaptioner) -> list[torch.Tensor]:
    model: Any = captioner.captioner.model  # type: ignore[attr-defined]
    return [*chain(model.parameters(), captioner.saliency.parameters())]


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_two_streams_give_the_captions_of_one(family):
    captioner = load(family)
    found = run(captioner, num_streams=2)
    torch.set_num_threads(1)  # as each stream has, for sums of several threads are rounded otherwise
    expected = run(captioner, num_streams=1)
    assert [record["id"] for record in found] == NAMES
    for one, other in zip(found, expected, strict=True):
        assert one["error"] is None
        assert {**one, "timings": None} == {**other, "timings": None}
        assert min(one["timings"].values()) >= 0  # a hook that heard another batch would end its stage too early
    assert len({record["caption"] for record in found}) > 1  # the clips differ


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_a_replica_has_its_own_modules_and_the_same_tensors(family):
    captioner = load(family)
    other = replicate(captioner)
    assert all(mine is its for mine, its in zip(tensors(captioner), tensors(other), strict=True))
    for mine, its in ((captioner.captioner.model, other.captioner.model), (captioner.saliency, other.saliency)):
        assert not {id(module) for module in mine.modules()} & {id(module) for module in its.modules()}


def test_two_batches_are_at_work_at_once_and_torch_has_its_threads_back():
    tiny = tiny_models.mini()
    options = {"mode": "prune", "keep_ratio": 0.5}
    captioner = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, saliency=Meeting(), **options)
    inside, counts = [], []

    def note(*_):
        inside.append(torch.get_num_threads())

    captioner.captioner.model.encoder.register_forward_hook(note)
    assert all(record["error"] is None for record in run(captioner, num_streams=2))
    assert set(inside) == {1}  # two streams of one thread each
    thread = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), counts) == (2, [2])


def test_an_error_of_the_settings_ends_the_run_and_one_of_a_clip_does_not(monkeypatch):
    captioner = load("mini")
    generate = type(captioner.captioner).generate

    def picky(self, clips, *rest, **generation):
        if any(clip.source in ("slow1.mp4", "slow4.mp4") for clip in clips):
            raise ValueError("odd clip")
        return generate(self, clips, *rest, **generation)

    monkeypatch.setattr(type(captioner.captioner), "generate", picky)
    records = run(captioner, num_streams=2)
    assert [record["error"] for record in records] == [None, "odd clip", None, None, "odd clip", None]
    with pytest.raises(ValueError, match="odd clip"):
        run(captioner, NAMES[1:], num_streams=2)  # whether or not another clip was done sooner


def test_out_of_memory_in_one_stream_makes_the_batches_of_all_smaller(monkeypatch):
    captioner, sizes = load("mini"), []
    generate = type(captioner.captioner).generate

    def tight(self, clips, *rest, **generation):
        sizes.append(len(clips))
        if len(clips) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return generate(self, clips, *rest, **generation)

    monkeypatch.setattr(type(captioner.captioner), "generate", tight)
    records = run(captioner, [f"slow{number}.mp4" for number in range(12)], batch_size=4, num_streams=2)
    assert [record["error"] for record in records] == [None] * 12
    assert 1 <= sizes.count(2) <= 2  # those that were at work together
    assert "out of memory: captioned with batch_size 1" in records[-1]["warnings"]


@pytest.mark.parametrize(
    "options, expected", [({}, 2), ({"do_sample": True}, 1), ({"do_sample": False, "num_beams": 2}, 2)]
)
def test_streams_are_for_cpus_with_threads_and_words_that_are_not_drawn(options, expected):
    captioner = load("mini")
    assert fitting_streams(captioner, options) == expected
    captioner.captioner.model.generation_config.do_sample = True
    assert fitting_streams(captioner, options) == (expected if "do_sample" in options else 1)
    captioner.captioner.model.generation_config.do_sample = False
    torch.set_num_threads(1)
    assert fitting_streams(captioner, options) == 1


def test_a_backbone_that_cannot_be_copied_takes_one_stream_and_says_so(caplog):
    class Locked(SaliencyModel):
        name = "locked"

        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

        def forward(self, pixels, pts_seconds=None):
            with self.lock:
                return pixels.mean(1)

    tiny = tiny_models.mini()
    captioner = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, saliency=Locked(), mode="scale")
    assert [record["error"] for record in run(captioner)] == [None] * 6
    captioner = load("mini")
    captioner.captioner.lock = threading.Lock()
    assert [record["error"] for record in run(captioner)] == [None] * 6
    assert "one batch at a time" in caplog.text
    assert "with center cannot be copied: cannot pickle '_thread.lock' object" in caplog.text
    with pytest.raises(ValueError, match=r"num_streams must be 1, got 2: .* cannot be copied"):
        run(captioner, num_streams=2)


def test_a_number_of_streams_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="num_streams must be at least 1, got 0"):
        run(load("mini"), num_streams=0)
    with pytest.raises(ValueError, match="num_streams must be at most batch_size, 1, got 2"):
        run(load("mini"), num_streams=2, batch_size=1)


def test_a_model_with_hooks_or_objects_for_generate_takes_one_stream():
    captioner = load("mini")
    assert fitting_streams(captioner, {"logits_processor": object()}) == 1
    captioner.captioner.model.decoder.register_forward_hook(lambda *_: None)
    assert fitting_streams(captioner, {}) == 1


def test_one_clip_has_all_threads():
    captioner, counts = load("mini"), []
    captioner.saliency.register_forward_hook(lambda *_: counts.append(torch.get_num_threads()))
    run(captioner, NAMES[:1])
    assert counts == [2]


def test_a_run_that_is_broken_off_waits_for_no_clip():
    captioner = load("mini")

    def stop(record, *_):
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        caption_corpus(
            captioner, [*NAMES[:2], "hang.mp4", "hang2.mp4"], num_streams=2, progress=stop,
            **{**FAST, "num_workers": 1, "time_limit": 300.0},
        )  # fmt: skip
    assert time.monotonic() - started < 120  # the clip that hangs has 300 s
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    "options, streams, size",
    [
        ({}, 2, 1),
        ({"batch_size": 1}, 1, 1),
        ({"batch_size": 8}, 2, 4),
        ({"batch_size": 3}, 2, 1),
        ({"batch_size": 8, "num_streams": 1}, 1, 8),
        ({"batch_size": 8, "do_sample": True}, 1, 8),
    ],
)
def test_the_streams_share_what_may_be_at_work_at_once(options, streams, size, monkeypatch):
    captioner, sizes, names = load("mini"), [], set()
    generate = type(captioner.captioner).generate

    def note(self, clips, *rest, **generation):
        sizes.append(len(clips))
        names.add(threading.current_thread().name)
        return generate(self, clips, *rest, **generation)

    monkeypatch.setattr(type(captioner.captioner), "generate", note)
    records = run(captioner, [f"slow{number}.mp4" for number in range(24)], **options)
    assert [record["error"] for record in records] == [None] * 24
    assert (max(sizes), len(names)) == (size, streams)
