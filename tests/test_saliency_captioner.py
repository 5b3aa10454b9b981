"""The way of a video from file to caption."""

from __future__ import annotations

import functools
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

import salcap
from salcap import Caption, SaliencyCaptioner, Weighting
from salcap.config import resolve_weighting
from salcap.sampling import presample_size

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample.mp4"


@pytest.fixture(scope="module")
def tiny() -> tiny_models.Tiny:
    return tiny_models.mini()


@pytest.fixture(scope="module")
def bundled() -> SaliencyCaptioner:
    return SaliencyCaptioner.from_pretrained("salcap-mini")


def test_the_bundled_captioner_tells_what_the_sample_shows(bundled):
    """A woman in an orange space suit before a flag; any small captioner should see at least a person."""
    result = bundled.caption(SAMPLE)
    assert {"person", "woman", "girl", "man", "boy", "child", "lady", "people"} & set(result.text.split()), result.text
    assert result.saliency == bundled.saliency.name != "uniform"
    assert len(result.frame_pts_seconds) == 8
    stages = ("read", "saliency", "preprocess", "encode", "prefill", "decode")
    assert list(result.timings) == [f"{stage}_ms" for stage in stages]
    assert all(value > 0 for value in result.timings.values())
    assert -5 < result.score < 0
    assert (result.start_seconds, result.error, result.model) == (0.0, None, "salcap-mini")
    assert result.end_seconds > result.frame_pts_seconds[-1]


def test_the_bundled_captioner_tells_videos_apart(bundled, shared):
    clips = sorted((shared / "data" / "captions" / "msvd" / "clips").glob("*.avi"))
    results = bundled.caption_batch(clips)
    assert all(result.error is None for result in results)
    assert len({result.text for result in results}) >= 5
    assert bundled.caption(clips[2]).text == results[2].text  # batch equals single


def test_saliency_decides_what_is_seen(tiny):
    """The same video, model and budget: another backbone, another caption score; none needs no map."""
    scores = {}
    for saliency in ("center", "spectral_residual"):
        captioner = SaliencyCaptioner.from_pretrained(
            tiny.model, tiny.processor, saliency=saliency, mode="prune", policy="top", keep_ratio=0.25
        )
        result = captioner.caption(SAMPLE, num_frames=3)
        assert (result.saliency, result.mode, result.policy, result.visual_tokens) == (saliency, "prune", "top", 12)
        scores[saliency] = result.score
    plain = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, mode="none").caption(SAMPLE, num_frames=3)
    assert (plain.saliency, plain.visual_tokens, plain.keep_ratio) == (None, 48, 1.0)
    assert "saliency_ms" not in plain.timings
    assert len({*scores.values(), plain.score}) == 3


def test_uniform_saliency_is_none_bit_for_bit(tiny):
    scores = {}
    for mode in ("none", "scale", "bias"):
        captioner = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, saliency="uniform", mode=mode)
        scores[mode] = captioner.caption(SAMPLE, num_frames=2).score
    assert len(set(scores.values())) == 1


def test_path_frames_and_array_agree(tiny):
    captioner = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, keep_ratio=0.5)
    from_path = captioner.caption(SAMPLE, num_frames=4)
    frames = salcap.read_frames(SAMPLE, 4, **captioner.captioner.read_options)
    from_frames = captioner.caption(frames, num_frames=4)
    assert (from_path.text, from_path.score) == (from_frames.text, from_frames.score)
    array = frames.pixels.permute(0, 2, 3, 1).numpy()
    from_array = captioner.caption(array)
    assert from_array.frame_pts_seconds == (0, 1, 2, 3)
    assert from_array.warnings == ("asked for 8 frames, the clip gave 4",)
    assert captioner.caption(array[:, :, :, ::-1]).text is not None  # numpy views, here BGR turned to RGB
    assert captioner.caption(np.repeat(array, 4, axis=0), num_frames=4).frame_pts_seconds == (2, 6, 10, 14)


def test_clip_window(tiny):
    captioner = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor)
    result = captioner.caption(SAMPLE, num_frames=2, start_seconds=1.0, end_seconds=2.0)
    assert (result.start_seconds, result.end_seconds) == (1.0, 2.0)
    assert all(1.0 <= t < 2.0 for t in result.frame_pts_seconds)


def test_windows_of_a_file_are_those_of_its_bytes(tiny):
    captioner = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor)
    few = {"num_frames": 2, "max_new_tokens": 3}
    expected = list(captioner.caption_windows(SAMPLE, 2, **few))
    with open(SAMPLE, "rb") as file:
        for video in (file, file.read(), io.BytesIO(Path(SAMPLE).read_bytes())):
            found = list(captioner.caption_windows(video, 2, **few))
            assert [(c.text, c.frame_pts_seconds) for c in found] == [(c.text, c.frame_pts_seconds) for c in expected]
    assert len(expected) == 3
    with pytest.raises(TypeError, match=r"windows are cut out of files .*, got ndarray"):
        next(captioner.caption_windows(np.zeros((2, 8, 8, 3), np.uint8), 2))


def test_a_batch_is_a_list(tiny):
    captioner = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor)
    for videos in (SAMPLE, bytearray(b"video"), {"video": SAMPLE}):
        with pytest.raises(TypeError, match="caption_batch takes a list of videos, got"):
            captioner.caption_batch(videos)


def test_a_record_read_back_is_the_caption():
    caption = Caption(
        "a cat", "a.mp4", 0.5, zoom_boxes=((0.0, 0.1, 0.5, 0.6),), frame_pts_seconds=(0.5, 1.0), warnings=("short",)
    )
    assert Caption.from_dict(json.loads(json.dumps({"id": "x", **caption.to_dict()}))) == caption


def test_batch_keeps_going_and_names_what_failed(tiny, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    captioner = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor)
    results = captioner.caption_batch([SAMPLE, broken, tmp_path / "missing.mkv", SAMPLE], num_frames=2)
    assert [result.error is None for result in results] == [True, False, False, True]
    assert [result.path for result in results] == [str(p) for p in (SAMPLE, broken, tmp_path / "missing.mkv", SAMPLE)]
    assert results[1].text is None
    assert "broken.mp4" in results[1].error
    assert results[0].text == results[3].text
    with pytest.raises(salcap.VideoDecodeError, match=r"broken\.mp4"):
        captioner.caption(broken)
    with pytest.raises(TypeError, match="takes a list"):
        captioner.caption_batch(str(SAMPLE))


def test_a_plugin_that_raises_costs_its_video_only(tiny):
    class Fussy(salcap.SaliencyModel):
        def forward(self, pixels, pts_seconds=None):
            if len(pixels) == 2:
                raise RuntimeError("two frames are too few for me")
            return pixels.mean(1)

    captioner = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, saliency=Fussy(), mode="scale")
    arrays = [np.full((n, 32, 32, 3), 50 * n, np.uint8) for n in (1, 2, 3)]
    results = captioner.caption_batch(arrays)
    assert [result.error for result in results] == [None, "two frames are too few for me", None]
    with pytest.raises(RuntimeError, match="too few"):
        captioner.caption(arrays[1])


def test_a_backbone_given_as_an_object_is_put_in_evaluation_mode(tiny):
    class Dropping(salcap.SaliencyModel):
        def forward(self, pixels, pts_seconds=None):
            return torch.nn.functional.dropout(pixels.mean(1), 0.5, self.training)

    captioner = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, saliency=Dropping(), mode="scale")
    assert not captioner.saliency.training
    with pytest.raises(TypeError, match="got Linear"):
        SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, saliency=torch.nn.Linear(1, 1), mode="scale")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"saliency": "center"}, "give a mode of"),
        ({"policy": "top"}, "policy 'top' does nothing in mode 'none'"),
        ({"mode": "prune"}, "needs a keep_ratio below 1 or max_visual_tokens"),
        ({"mode": "scale", "max_visual_tokens": 9}, "max_visual_tokens 9 needs a mode with 'prune'"),
        ({"min_keep": 2}, "min_keep 2 needs a mode with 'prune', got mode 'none'"),
        ({"mode": "prune", "keep_ratio": 0.5, "strength": 0.2}, "strength 0.2 does nothing in mode 'prune'"),
        ({"mode": "zoomm"}, "unknown mode 'zoomm'"),
        ({"mode": "scale", "keep_ratio": 0.5}, "needs a mode with 'prune'"),
        ({"keep_ratio": 1.5}, r"\(0, 1\], got 1.5"),
        ({"keep_ratio": ".5"}, "keep_ratio must be a number, got '.5'"),
        ({"mode": 3}, "mode must be a name of none, .*, got 3"),
        ({"device": "foo"}, r"device 'foo' cannot be used \(.*\); here are cpu"),
        ({"device": 3.5}, "device 3.5 cannot be used"),
        ({"device": "meta"}, "no numbers are kept there"),
        ({"keep_ratio": 0.5, "policy": "foveat"}, "did you mean 'foveate'"),
        ({"mode": "scale", "saliency": "spectral"}, "spectral_residual"),
    ],
)
def test_wrong_settings_fail(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, **options)


def test_a_budget_that_is_given_replaces_the_default_one():
    half = Weighting("scale+prune", "top", keep_ratio=0.5, scope="clip", min_keep=3, strength=0.2)
    limit = Weighting("prune", max_visual_tokens=99, min_keep=2)
    cases = [
        (Weighting(), {"max_visual_tokens": 64}, Weighting("prune", max_visual_tokens=64)),
        (Weighting("scale"), {"max_visual_tokens": 64}, Weighting("scale+prune", max_visual_tokens=64)),
        (half, {"max_visual_tokens": 64}, replace(half, keep_ratio=1.0, max_visual_tokens=64)),
        (half, {"keep_ratio": 0.25}, replace(half, keep_ratio=0.25)),
        (half, {"min_keep": 1}, replace(half, min_keep=1)),
        (half, {"policy": "pool"}, replace(half, policy="pool")),
        (half, {"keep_ratio": 0.7, "max_visual_tokens": 9}, replace(half, keep_ratio=0.7, max_visual_tokens=9)),
        (half, {"mode": "bias"}, Weighting("bias", "top", scope="clip", strength=0.2)),
        (limit, {"keep_ratio": 0.5}, Weighting("prune", keep_ratio=0.5, min_keep=2)),
        (limit, {"max_visual_tokens": 9, "scope": "frame"}, replace(limit, max_visual_tokens=9, scope="frame")),
        (limit, {"mode": "none"}, Weighting()),
        (limit, {"mode": "prune"}, limit),
    ]
    for default, given, expected in cases:
        assert resolve_weighting(default, **given) == expected, given


def test_a_limit_over_the_clip_goes_to_the_frames_that_hold_the_gaze_least(tiny):
    """One frame is looked at in one place, the others all over: the same video, and a record that says how."""

    class OneSpot(salcap.SaliencyModel):
        def forward(self, pixels, pts_seconds=None):
            maps = torch.zeros(len(pixels), 8, 8)
            maps[0, 1:] = -30.0
            return maps

    load = functools.partial(SaliencyCaptioner.from_pretrained, tiny.model, tiny.processor)
    captioner = load(saliency=OneSpot(), mode="prune", policy="top", max_visual_tokens=20)
    result = captioner.caption(SAMPLE, num_frames=3)
    assert (result.visual_tokens, result.max_visual_tokens, result.keep_ratio) == (20, 20, 1.0)
    assert (result.mode, result.policy, result.scope, result.min_keep) == ("prune", "top", "clip", 1)
    assert result.to_dict()["max_visual_tokens"] == 20
    plain = load(mode="none").caption(SAMPLE, num_frames=3)
    assert (plain.scope, plain.max_visual_tokens, plain.visual_tokens) == (None, None, 48)
    for most in (48, 1000):
        fits = captioner.with_weighting(max_visual_tokens=most).caption(SAMPLE, num_frames=3)
        assert (fits.text, fits.score, fits.visual_tokens) == (plain.text, plain.score, 48)
    assert captioner.with_weighting(max_visual_tokens=47).caption(SAMPLE, num_frames=3).score != plain.score
    with pytest.raises(ValueError, match=r"max_visual_tokens must be at least 21 .* got 20"):
        captioner.with_weighting(min_keep=7).caption(SAMPLE, num_frames=3)


# --- frames by saliency ---


@pytest.mark.parametrize("num_frames", [1, 3, 6, 8, 40])
def test_where_no_map_moves_frames_by_saliency_are_the_uniform_ones(tiny, num_frames):
    """From a file (also in part), from frames in memory, and all that is there if there are few."""
    captioner = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, saliency="center", mode="scale")
    memory = salcap.read_frames(SAMPLE, 150, **captioner.captioner.read_options)
    few = replace(memory.take(torch.arange(0, 150, 20)), clip_seconds=None)
    for video, window in ((SAMPLE, {}), (SAMPLE, {"start_seconds": 1.3, "end_seconds": 4.9}), (memory, {}), (few, {})):
        uniform = captioner.caption(video, num_frames, max_new_tokens=3, **window)
        chosen = captioner.caption(video, num_frames, max_new_tokens=3, frames="saliency", **window)
        assert set(chosen.timings) - set(uniform.timings) == {"choose_ms"}
        neutral = {"timings": {}, "frames": "uniform"}
        assert replace(chosen, **neutral) == replace(uniform, **neutral)
        assert (uniform.frames, chosen.frames) == ("uniform", "saliency")


def test_frames_by_saliency_go_to_the_eventful_second(tiny):
    """Ten seconds of grey with a bright ball, which moves in the seventh alone; the bundled student looks at them."""
    times = torch.arange(100) / 10.0
    pixels = torch.full((100, 3, 96, 128), 90, dtype=torch.uint8)
    for number, second in enumerate(times.tolist()):
        x = 10 + round(90 * min(max(second - 6.0, 0.0), 1.0))
        pixels[number, :, 30:60, x : x + 24] = 250
    frames = salcap.Frames(pixels, times)
    captioner = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, saliency="uva_net", mode="none")
    uniform = captioner.caption(frames, 6, max_new_tokens=2)
    chosen = captioner.caption(frames, 6, max_new_tokens=2, frames="saliency")
    assert (uniform.saliency, chosen.saliency) == (None, "uva_net")
    eventful = [sum(6.0 <= t <= 7.1 for t in result.frame_pts_seconds) for result in (uniform, chosen)]
    assert eventful[0] <= 1
    assert eventful[1] >= 3
    assert min(chosen.frame_pts_seconds) < 2.0
    assert max(chosen.frame_pts_seconds) > 7.1
    array = captioner.caption(pixels.permute(0, 2, 3, 1).numpy(), 6, max_new_tokens=2, frames="saliency")
    assert array.frame_pts_seconds == tuple(round(10 * t, 6) for t in chosen.frame_pts_seconds)


def test_a_captioner_that_reads_frames_at_full_size_gets_them_in_a_second_pass(tiny, monkeypatch):
    """The pre-sample is read small then; the frames are those of the file all the same."""
    captioner = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, saliency="uva_net", mode="none")
    read: list[salcap.Frames] = []

    def read_frames(*args, **options):
        read.append(salcap.read_frames(*args, **options))
        return read[-1]

    monkeypatch.setattr("salcap.sources.read_frames", read_frames)
    once = captioner.caption(SAMPLE, 5, max_new_tokens=2, frames="saliency")
    assert [frames.pixels.shape[-2:] for frames in read] == [(64, 64)]
    monkeypatch.setattr(captioner.captioner, "read_options", {})
    twice = captioner.caption(SAMPLE, 5, 0.5, 5.5, max_new_tokens=2, frames="saliency")
    small, full = read[1:]
    assert (len(small), small.pixels.shape[-2:]) == (presample_size(5), (64, 64))
    assert full.pixels.shape[-2:] == salcap.read_frames(SAMPLE, 1).pixels.shape[-2:]
    assert len(once.frame_pts_seconds) == len(twice.frame_pts_seconds) == 5
    assert set(full.pts_seconds.tolist()) < set(small.pts_seconds.tolist())
    assert (twice.start_seconds, twice.end_seconds, twice.warnings) == (0.5, 5.5, ())
    short = captioner.caption(SAMPLE, 5, 1.01, 1.06, max_new_tokens=2, frames="saliency")
    assert short.warnings == (f"asked for 5 frames, the clip gave {len(short.frame_pts_seconds)}",)
    alone = [salcap.read_frames(SAMPLE, 1, t, t + 0.01).pixels[0] for t in full.pts_seconds.tolist()]
    assert torch.equal(full.pixels, torch.stack(alone))


def test_frames_by_saliency_of_a_short_clip_are_all_it_has_and_say_so(tiny):
    captioner = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, saliency="uva_net", mode="none")
    array = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    assert captioner.caption(array, 6, frames="saliency").frame_pts_seconds == (0, 1, 2, 3, 4, 5)
    result = captioner.caption(array, 8, frames="saliency")
    assert result.frame_pts_seconds == (0, 1, 2, 3, 4, 5)
    assert result.warnings == ("asked for 8 frames, the clip gave 6",)
    assert captioner.caption(array, 4, frames="saliency").warnings == ()
    with pytest.raises(ValueError, match="unknown frames 'salient', allowed: uniform, saliency; did you mean"):
        captioner.caption_batch([array], frames="salient")


def test_the_default_number_of_frames_fits_the_model():
    git = tiny_models.git(num_frames=3)
    captioner = SaliencyCaptioner.from_pretrained(git.model, git.processor)
    assert len(captioner.caption(SAMPLE, max_new_tokens=3).frame_pts_seconds) == 3
    with pytest.raises(ValueError, match="takes 1 to 3 frames, got 4"):
        captioner.caption(SAMPLE, 4)


def test_a_mode_that_the_model_cannot_honour_fails():
    swin = tiny_models.vision_encoder_decoder("vit_msn")
    with pytest.raises(ValueError, match=r"cannot honour mode 'prune'.*\['none', 'zoom'\]"):
        SaliencyCaptioner.from_pretrained(swin.model, swin.processor, mode="prune", keep_ratio=0.5)


@pytest.mark.parametrize("video", [np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 3), np.float32)])
def test_wrong_arrays_fail(tiny, video):
    captioner = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor)
    with pytest.raises(ValueError, match=r"\(T, H, W, 3\) uint8"):
        captioner.caption(video)


def test_a_plugin_that_breaks_the_contract_is_named(tiny):
    class Broken(salcap.SaliencyModel):
        def forward(self, pixels, pts_seconds=None):
            return torch.full((len(pixels), 4, 4), torch.nan)

    captioner = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, saliency=Broken(), mode="scale")
    with pytest.raises(ValueError, match="unnamed"):
        captioner.caption(SAMPLE)
