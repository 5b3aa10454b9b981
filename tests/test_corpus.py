"""Many videos: a record of each, whatever happens on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import struct
import subprocess
import time
from pathlib import Path

import numpy as np
import odd_readers
import pytest
import tiny_models
import torch
from PIL import Image, ImageOps

from salcap import SaliencyCaptioner, SaliencyModel
from salcap.corpus import caption_corpus
from salcap.datasets.captioned_videos import CaptionedItem, create_set
from salcap.manifest import Item
from salcap.records import read_records
from salcap.stills import read_still
from salcap.video import VideoDecodeError, VideoLimits, read_frames

NAMES = [f"slow{number}.mp4" for number in range(30)]
FAST = {"num_frames": 4, "max_new_tokens": 4, "num_workers": 0, "reader": odd_readers.read}


@pytest.fixture
def captioner() -> SaliencyCaptioner:
    tiny = tiny_models.mini()
    return SaliencyCaptioner.from_pretrained(
        tiny.model, tiny.processor, saliency="center", mode="prune", keep_ratio=0.5
    )


def captions(path: Path) -> dict[str, str | None]:
    records = list(read_records(path))
    assert len({record["id"] for record in records}) == len(records)  # no duplicate
    return {record["id"]: record["caption"] for record in records}


def test_one_record_each_in_order_and_the_same_as_by_hand(captioner, tmp_path):
    seen = []
    out = tmp_path / "out.jsonl"
    items = ["a.mp4", Item("broken.mp4", "why"), Item("b.mp4", "b", 0.5, 2.0)]
    summary = caption_corpus(captioner, items, out, batch_size=2, progress=lambda *step: seen.append(step), **FAST)
    records = list(read_records(out))
    assert [record["id"] for record in records] == ["a.mp4", "why", "b"]
    assert [(step[0]["id"], *step[1:]) for step in seen] == [("a.mp4", 1, 3), ("why", 2, 3), ("b", 3, 3)]
    assert (summary.num_items, summary.num_new, summary.num_failed) == (3, 3, 1)
    assert summary.errors == {"VideoDecodeError": 1}
    assert summary.records == out
    assert records[1]["error"] == "cannot read video broken.mp4: made so"
    frames = odd_readers.read("a.mp4", 4, None, None, limits=None, **captioner.read_options)
    expected = captioner.caption(frames, num_frames=4, max_new_tokens=4)
    assert records[0]["caption"] == expected.text
    assert records[0]["frame_pts_seconds"] == list(expected.frame_pts_seconds)
    assert records[0]["warnings"] == ["odd"]


@pytest.mark.parametrize("frames", ["uniform", "saliency"])
def test_reading_ahead_gives_what_caption_gives(captioner, frames):
    sample = str(Path(__file__).resolve().parents[1] / "data" / "sample.mp4")
    found = []
    options = {"num_frames": 3, "frames": frames, "max_new_tokens": 4}
    caption_corpus(captioner, [sample], num_workers=0, progress=lambda r, *_: found.append(r), **options)
    expected = captioner.caption(sample, **options).to_dict()
    for name in expected.keys() - {"timings"}:
        assert found[0][name] == json.loads(json.dumps(expected))[name] or found[0][name] == expected[name], name


def test_killed_at_any_moment_it_goes_on_without_loss_or_duplicate(captioner, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    caption_corpus(captioner, NAMES, whole, **FAST)
    moments, kills = random.Random(0), 0
    for _ in range(40):
        run = multiprocessing.get_context("fork").Process(
            target=caption_corpus, args=(captioner, NAMES, out), kwargs=FAST
        )
        run.start()
        before = out.stat().st_size if out.exists() else 0
        while run.is_alive() and (not out.exists() or out.stat().st_size == before):
            time.sleep(0.001)
        time.sleep(moments.random() * 0.1)
        if run.is_alive():
            os.kill(run.pid, signal.SIGKILL)
            kills += 1
        run.join()
        if run.exitcode == 0:
            break
    assert kills >= 2
    assert captions(out) == captions(whole)
    assert list(captions(out)) == NAMES
    summary = caption_corpus(captioner, NAMES, out, **FAST)
    assert (summary.num_items, summary.num_new, summary.num_failed) == (30, 0, 0)


def remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def test_on_a_full_disk_it_stops_with_whole_records_and_goes_on_when_there_is_room(captioner, tmp_path, small_disk):
    whole, out, filler = tmp_path / "whole.jsonl", small_disk / "out.jsonl", small_disk / "filler"
    caption_corpus(captioner, NAMES, whole, **FAST)
    filler.write_bytes(bytes(8192))
    with pytest.raises(OSError, match=r"cannot write .*out\.jsonl\.settings: No space left on device$"):
        caption_corpus(captioner, NAMES, out, **FAST)
    assert list(small_disk.iterdir()) == [filler]
    filler.unlink()
    for _ in range(2):  # the second run finds no more room than the first
        with pytest.raises(OSError, match="records are whole, and the same command goes on with them") as caught:
            caption_corpus(captioner, NAMES, out, **FAST)
        kept = captions(out)
        assert f"cannot write {out}: No space left on device; its {len(kept)} records" in str(caught.value)
    assert list(kept) == NAMES[: len(kept)] != []
    remount(small_disk, "size=1m")
    summary = caption_corpus(captioner, NAMES, out, **FAST)
    assert (summary.num_items, summary.num_new) == (30, 30 - len(kept))
    assert list(captions(out).items()) == list(captions(whole).items())


def test_on_a_read_only_disk_it_stops_before_the_first_video(captioner, small_disk):
    out, fresh = small_disk / "out.jsonl", small_disk / "fresh.jsonl"
    caption_corpus(captioner, NAMES[:2], out, **FAST)
    kept = out.read_bytes()
    remount(small_disk, "ro")
    seen = []
    for path in (out, fresh):
        with pytest.raises(OSError, match=f"Read-only file system: '{path}"):
            caption_corpus(captioner, NAMES[:4], path, progress=lambda *step: seen.append(step), **FAST)
    assert (out.read_bytes(), seen, fresh.exists()) == (kept, [], False)
    remount(small_disk, "rw")
    assert caption_corpus(captioner, NAMES[:4], out, **FAST).num_new == 2
    assert out.read_bytes().startswith(kept)


def test_a_data_set_is_a_corpus(captioner, tmp_path):
    pictures = [tmp_path / f"{name}.png" for name in ("a", "b", "c")]
    for number, path in enumerate(pictures[:2]):
        Image.effect_noise((40 + number, 30), 200).save(path)
    pictures[2].write_text("no picture")
    items = [CaptionedItem(path.stem, path, ("a cat",)) for path in pictures]
    stills = create_set("pictures", "val", [*items, CaptionedItem("lost", None, ("a dog",))], stills=True)
    out = tmp_path / "out.jsonl"
    summary = caption_corpus(captioner, stills, out, batch_size=2, max_new_tokens=4)
    assert summary.errors == {"UnidentifiedImageError": 1}
    expected = [
        captioner.caption(read_still(path, **captioner.read_options), max_new_tokens=4) for path in pictures[:2]
    ]
    assert captions(out) == {"a": expected[0].text, "b": expected[1].text, "c": None}
    assert [record["frame_pts_seconds"] for record in read_records(out)] == [[0.0], [0.0], []]
    with pytest.raises(ValueError, match="pictures holds photographs, clips of one frame"):
        caption_corpus(captioner, stills, num_frames=2)
    with pytest.raises(ValueError, match=r"other settings \(set: none, now 'x'\)"):
        caption_corpus(captioner, stills, out, settings={"set": "x"}, max_new_tokens=4)

    sample = Path(__file__).resolve().parents[1] / "data" / "sample.mp4"
    parts = create_set("parts", None, [CaptionedItem(f"{s}", sample, ("a",), s, s + 1.0) for s in (0.0, 2.0)])
    caption_corpus(captioner, parts, tmp_path / "parts.jsonl", num_frames=2, num_workers=0, max_new_tokens=4)
    records = {record["id"]: record for record in read_records(tmp_path / "parts.jsonl")}
    assert {key: record["start_seconds"] for key, record in records.items()} == {"0.0": 0.0, "2.0": 2.0}


def test_a_photograph_is_a_clip_of_one_frame(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (60, 30), 7).save(path)
    frames = read_still(path, size=(10, 12))
    assert (frames.pixels.shape, frames.source, frames.pts_seconds.tolist()) == ((1, 3, 10, 12), str(path), [0.0])
    assert set(frames.pixels.flatten().tolist()) == {7}
    assert read_still(path, shortest_side=10).pixels.shape == (1, 3, 10, 20)
    assert read_still(path, shortest_side=90).pixels.shape == (1, 3, 30, 60)
    with pytest.raises(ValueError, match="is one frame without times, got 2 frames from None to 1 s"):
        read_still(path, 2, None, 1)
    with pytest.raises(VideoDecodeError, match="declares 60x30 pixels, at most 1000 are decoded"):
        read_still(path, limits=VideoLimits(max_pixels=1000))


def test_a_photograph_is_upright_and_of_eight_bits(tmp_path):
    ramp = np.linspace(0, 65535, 96 * 64).reshape(64, 96).astype(np.uint16)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise
    for path, exif in ((tmp_path / "grey.png", Image.Exif()), (tmp_path / "turned.png", turned)):
        Image.fromarray(ramp).save(path, exif=exif)
        still, frames = read_still(path), read_frames(path, 1)
        assert still.pixels.shape == frames.pixels.shape
        assert (still.pixels.int() - frames.pixels.int()).abs().max() <= 1
    assert still.pixels.shape == (1, 3, 96, 64)
    Image.fromarray((ramp >> 8).astype(np.int32)).save(tmp_path / "int32.tif")  # of 32 bits, but as bright as 8 are
    assert read_still(tmp_path / "int32.tif").pixels.max() == 255


@pytest.mark.parametrize("orientation", range(10))
def test_a_photograph_is_turned_whatever_its_other_tags_hold(tmp_path, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    tags = Image.Exif()
    tags[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=tags)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(read_still(tmp_path / "a.png").pixels[0].permute(1, 2, 0).numpy(), expected)
    maker = struct.pack("<HHIf", 0x010F, 11, 1, 2.0)  # a maker that is a number, which Pillow cannot write again
    directory = struct.pack("<H", 2) + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + maker + bytes(4)
    Image.fromarray(pixels).save(tmp_path / "b.png", exif=b"Exif\0\0II*\0\x08\0\0\0" + directory)
    assert np.array_equal(read_still(tmp_path / "b.png").pixels[0].permute(1, 2, 0).numpy(), expected)


def test_a_reading_process_that_dies_or_hangs_costs_one_video(captioner, tmp_path):
    out = tmp_path / "out.jsonl"
    names = ["a.mp4", "die.mp4", "b.mp4", "hang.mp4", "c.mp4"]
    summary = caption_corpus(captioner, names, out, batch_size=2, **{**FAST, "num_workers": 1, "time_limit": 2.0})
    assert [(record["id"], record["error_class"]) for record in read_records(out)] == [
        ("a.mp4", None), ("die.mp4", "ReaderDied"), ("b.mp4", None), ("hang.mp4", "ReadTimeout"), ("c.mp4", None),
    ]  # fmt: skip
    assert summary.errors == {"ReaderDied": 1, "ReadTimeout": 1}


def test_failures_are_retried_where_asked(captioner, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    caption_corpus(captioner, ["a.mp4", "broken.mp4"], out, **FAST)
    again = caption_corpus(captioner, ["a.mp4", "broken.mp4"], out, **FAST)
    assert (again.num_new, again.num_failed) == (0, 1)
    monkeypatch.setattr(odd_readers, "VideoDecodeError", lambda *_: None)  # raising None is a TypeError
    retried = caption_corpus(captioner, ["a.mp4", "broken.mp4"], out, retry_failed=True, **FAST)
    assert (retried.num_new, retried.errors) == (1, {"TypeError": 1})
    assert list(captions(out)) == ["a.mp4", "broken.mp4"]


def test_captions_below_the_least_score_are_marked(captioner, tmp_path):
    records = {}
    for name, min_score in (("plain", None), ("low", -0.01), ("high", -99.0)):
        out = tmp_path / f"{name}.jsonl"
        caption_corpus(captioner, ["a.mp4", "broken.mp4"], out, min_score=min_score, **FAST)
        records[name] = list(read_records(out))
    assert all("low_confidence" not in record for record in records["plain"])
    assert -99.0 < records["plain"][0]["score"] < -0.01
    assert [record["low_confidence"] for record in records["low"]] == [True, None]
    assert [record["low_confidence"] for record in records["high"]] == [False, None]
    with pytest.raises(ValueError, match="min_score"):
        caption_corpus(captioner, ["a.mp4"], tmp_path / "high.jsonl", min_score=-9.0, **FAST)


def test_out_of_memory_less_is_seen_and_the_record_says_so(captioner, tmp_path, monkeypatch):
    generate, calls = captioner.captioner.generate, []

    def tight(clips, maps, weighting, **generation):
        calls.append((len(clips), weighting.keep_ratio, len(clips[0])))
        if len(clips) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if any(clip.source.startswith("big") and len(clip) * weighting.keep_ratio > 0.25 for clip in clips):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        if any(clip.source.startswith("never") for clip in clips):
            raise MemoryError
        return generate(clips, maps, weighting, **generation)

    monkeypatch.setattr(captioner.captioner, "generate", tight)
    out = tmp_path / "out.jsonl"
    names = ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "big.mp4", "never.mp4"]
    summary = caption_corpus(captioner, names, out, batch_size=4, **FAST)
    a, b, c, d, big, never = read_records(out)
    words = "out of memory: captioned with "
    assert calls[:3] == [(4, 0.5, 4), (2, 0.5, 4), (2, 0.5, 4)]
    assert all(record["warnings"] == ["odd", f"{words}batch_size 2"] for record in (a, b, c, d))
    assert [call for call in calls if call[0] == 1][:5] == [
        (1, 0.5, 4), (1, 0.25, 4), (1, 0.125, 4), (1, 0.125, 2), (1, 0.5, 4),
    ]  # fmt: skip
    assert f"{words}keep_ratio 0.125, num_frames 2" in big["warnings"]
    assert (big["keep_ratio"], len(big["frame_pts_seconds"]), big["error"]) == (0.125, 2, None)
    assert (never["error_class"], never["caption"]) == ("MemoryError", None)
    assert summary.errors == {"MemoryError": 1}
    summary = caption_corpus(captioner, names, tmp_path / "as-asked.jsonl", batch_size=4, lessen=False, **FAST)
    assert summary.errors == {"RuntimeError": 1, "MemoryError": 1}  # "big" fails rather than be seen with less
    assert captions(tmp_path / "as-asked.jsonl") == {**captions(out), "big.mp4": None}


def test_an_error_of_the_model_costs_the_clips_that_cause_it(captioner, tmp_path, monkeypatch):
    generate = captioner.captioner.generate

    def picky(clips, *rest, **generation):
        if any(clip.source.startswith("odd") for clip in clips):
            raise ValueError("aspect ratio")
        return generate(clips, *rest, **generation)

    monkeypatch.setattr(captioner.captioner, "generate", picky)
    out = tmp_path / "out.jsonl"
    summary = caption_corpus(captioner, ["a.mp4", "b.mp4", "odd.mp4", "c.mp4"], out, batch_size=2, **FAST)
    assert summary.errors == {"ValueError": 1}
    assert [record["error"] for record in read_records(out)] == [None, None, "aspect ratio", None]
    with pytest.raises(ValueError, match="aspect ratio"):  # settings that fit no video are told like this as well
        caption_corpus(captioner, ["odd.mp4", "c.mp4"], tmp_path / "other.jsonl", **FAST)
    assert not (tmp_path / "other.jsonl").exists()


def test_a_plugin_that_raises_or_returns_nonsense_has_its_class(tmp_path):
    class Odd(SaliencyModel):
        def forward(self, pixels, pts_seconds=None):
            mean = float(pixels.mean())
            if mean < 0.3:
                raise KeyError("plug-in")
            return pixels.mean(1) * (float("nan") if mean > 0.7 else 1.0)

    def read(path, count, *_, **options):
        frames = odd_readers.read(path, count, *_, **options)
        frames.pixels.fill_({"dark": 0, "grey": 128, "white": 255}[path])
        return frames

    tiny = tiny_models.mini()
    captioner = SaliencyCaptioner.from_pretrained(
        tiny.model, tiny.processor, saliency=Odd(), mode="prune", keep_ratio=0.5
    )
    out = tmp_path / "out.jsonl"
    caption_corpus(captioner, ["grey", "dark", "white"], out, batch_size=3, **{**FAST, "reader": read})
    assert [record["error_class"] for record in read_records(out)] == [None, "KeyError", "ValueError"]


def test_shards_make_the_records_of_one_run(captioner, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    caption_corpus(captioner, NAMES[:7], whole, **FAST)
    second = caption_corpus(captioner, NAMES[:7], out, shard=(2, 2), **FAST)
    assert (second.num_items, second.records) == (3, None)
    assert not out.exists()
    first = caption_corpus(captioner, NAMES[:7], out, shard=(1, 2), **FAST)
    assert (first.num_items, first.num_new, first.records) == (7, 4, out)
    assert captions(out) == captions(whole)
    assert list(captions(out)) == NAMES[:7]
    assert (tmp_path / "out.1-of-2.jsonl").exists()


def test_a_shard_that_overwrites_waits_for_the_others(captioner, tmp_path, caplog):
    out = tmp_path / "out.jsonl"
    for part in (1, 2):
        caption_corpus(captioner, NAMES[:4], out, shard=(part, 2), **FAST)
    other = {**FAST, "num_frames": 2}
    with pytest.raises(ValueError, match=r"other settings \(num_frames: 4, now 2\)"):
        caption_corpus(captioner, NAMES[:4], out, shard=(1, 2), **other)
    first = caption_corpus(captioner, NAMES[:4], out, shard=(1, 2), overwrite=True, **other)
    assert (first.num_new, first.records) == (2, None)
    assert "not merged: output" in caplog.text
    assert "2-of-2.jsonl was made with other settings (num_frames: 4, now 2)" in caplog.text
    second = caption_corpus(captioner, NAMES[:4], out, shard=(2, 2), overwrite=True, **other)
    assert (second.num_items, second.num_new, second.records) == (4, 2, out)
    assert {len(record["frame_pts_seconds"]) for record in read_records(out)} == {2}


def test_a_shard_that_overwrites_does_not_pass_over_a_damaged_part(captioner, tmp_path):
    out, part = tmp_path / "out.jsonl", tmp_path / "out.2-of-2.jsonl"
    caption_corpus(captioner, NAMES[:4], out, shard=(2, 2), **FAST)
    with part.open("a") as file:
        file.write("damaged\n")
    with pytest.raises(ValueError, match=r"out\.2-of-2\.jsonl, line 3 is no record of a run: b'damaged"):
        caption_corpus(captioner, NAMES[:4], out, shard=(1, 2), overwrite=True, **FAST)


@pytest.mark.parametrize("parts", [1, 2])
def test_names_that_are_no_text_are_found_again(captioner, tmp_path, parts):
    out, names = tmp_path / "out.jsonl", ["a\udcff.mp4", "a\udcfe.mp4", "b.mp4"]
    for _ in range(2):
        runs = [caption_corpus(captioner, names, out, shard=(n, parts), **FAST) for n in range(1, parts + 1)]
    assert (runs[-1].num_items, runs[-1].num_new, runs[-1].records) == (3, 0, out)
    records = list(read_records(out))
    assert [record["id"] for record in records] == ["a\\udcff.mp4", "a\\udcfe.mp4", "b.mp4"]
    assert [record["path"] for record in records] == names
    assert out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"shard": (0, 4)}, "1 <= i <= n, got 0 of 4"),
        ({"shard": (1, 2), "output": None}, "need an output"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_frames": 0}, "frames, got 0"),
        ({"frames": "most"}, "allowed: uniform, saliency"),
        ({"items": ["a.mp4", "a.mp4"]}, "'a.mp4' comes twice"),
    ],
)
def test_wrong_settings_fail(captioner, tmp_path, options, message):
    arguments = {"items": ["a.mp4"], "output": tmp_path / "out.jsonl", **FAST, **options}
    with pytest.raises(ValueError, match=message):
        caption_corpus(captioner, **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "items, message",
    [
        ("a.mp4", "takes a list of items, got one: 'a.mp4'"),
        (b"video", "takes a list of items, got one: b'video'"),
        ([b"video"], "an item is a path or a salcap.manifest.Item, got bytes"),
    ],
)
def test_items_are_paths(captioner, items, message):
    with pytest.raises(TypeError, match=message):
        caption_corpus(captioner, items, **FAST)


def test_a_time_limit_needs_a_process_that_can_be_ended(captioner):
    with pytest.raises(ValueError, match="time limit of 5 s needs num_workers of at least 1, got 0"):
        caption_corpus(captioner, ["a.mp4"], num_workers=0, time_limit=5)
