"""The teacher map cache: what is stored, what a stop costs, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import salcap
from salcap.cli import app
from salcap.datasets.captioned_images import decode_density, encode_density, iter_density_maps
from salcap.distill import map_cache
from salcap.distill.map_cache import build_map_cache, predict_density, read_map_cache
from salcap.frames import Frames
from salcap.hashing import weights_sha256
from salcap.saliency import TorchSaliency, create_saliency

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample.mp4"
NAMES = [f"{letter}.png" for letter in "abcdefg"]


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in NAMES:
        small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        small.resize((70, 50), Image.Resampling.BICUBIC).save(folder / name)
    return folder


@pytest.fixture
def model():
    return create_saliency("spectral_residual")


def expected_density(model, path, size=(60, 80)):
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]
    return predict_density(model, Frames(pixels, torch.zeros(1)), size)[0].numpy()


class Stops:
    """A model that is stopped by hand at one of its frames."""

    def __init__(self, monkeypatch, model, at: int) -> None:
        self.calls, forward = 0, model.forward

        def stop(pixels, pts_seconds=None):
            self.calls += 1
            if self.calls == at:
                raise KeyboardInterrupt
            return forward(pixels, pts_seconds)

        monkeypatch.setattr(model, "forward", stop)


def run(*arguments):
    return CliRunner().invoke(app, ["saliency-cache", *map(str, arguments)])


# --- what is stored ---


def test_encoding_is_off_by_half_a_step_at_most():
    rng = np.random.default_rng(1)
    density = rng.gamma(0.2, size=(4, 30, 40)).astype(np.float32)
    stored = encode_density(density)
    assert (stored.dtype, stored.shape) == (np.uint8, density.shape)
    assert (stored.max((1, 2)) == 255).all()
    root = np.sqrt(density / density.max((1, 2), keepdims=True))
    assert np.abs(stored / 255 - root).max() <= 0.5 / 255 + 1e-6
    decoded = decode_density(stored)
    np.testing.assert_allclose(decoded.sum((1, 2)), 1, rtol=1e-5)
    exact = density / density.sum((1, 2), keepdims=True)
    assert 0.5 * np.abs(decoded - exact).sum((1, 2)).max() < 0.01
    assert np.array_equal(encode_density(decoded), stored)


def test_images_come_back_as_they_were_predicted(pictures, model, tmp_path):
    (pictures / "below").mkdir()
    Image.open(pictures / "a.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(pictures / "below" / "a.png")
    (pictures / ".hidden.png").write_text("not read")
    advanced = []
    report = build_map_cache(model, pictures, tmp_path / "maps", size=(20, 32), progress=advanced.append)
    assert (report.num_written, report.num_already_done, report.failures, report.warnings) == (8, 0, {}, {})
    assert sum(advanced) == 8
    cache = read_map_cache(tmp_path / "maps")
    assert sorted(cache) == sorted([*NAMES, "below/a.png"])
    assert (cache.size, len(cache), cache.videos) == ((20, 32), 8, ())
    for name, density in cache.items():
        assert (density.shape, density.dtype) == ((20, 32), np.float32)
        assert 0.5 * np.abs(density - expected_density(model, pictures / name, (20, 32))).sum() < 0.005
    for name, density in iter_density_maps(tmp_path / "maps"):
        assert np.array_equal(density, cache[name])
    assert cache.record["teacher"] == "spectral_residual"
    assert cache.record["size"] == [20, 32]
    assert {"salcap", "weights_sha256", "source", "kind", "options"} <= cache.record.keys()


def test_fine_maps_are_summed_and_coarse_ones_interpolated():
    fine = TorchSaliency(torch.nn.AvgPool3d((3, 1, 1)), output="density")
    pixels = torch.randint(1, 256, (2, 3, 12, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    frames = Frames(pixels, torch.arange(2.0))
    grey = pixels.float().mean(1)
    blocks = grey.view(2, 4, 3, 5, 4).sum((2, 4))
    torch.testing.assert_close(predict_density(fine, frames, (4, 5)), blocks / blocks.sum((1, 2), keepdim=True))
    torch.testing.assert_close(predict_density(fine, frames, (24, 40)), fine.predict(frames, (24, 40)).exp())


def test_videos_keep_their_times(model, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("one#1.mp4", "two.mp4"):
        (videos / name).write_bytes(SAMPLE.read_bytes())
    build_map_cache(model, videos, tmp_path / "maps", "videos", num_frames=3)
    cache = read_map_cache(tmp_path / "maps")
    assert cache.videos == ("one#1.mp4", "two.mp4")
    assert set(cache) == {f"{video}#{frame}" for video in cache.videos for frame in range(3)}
    frames = map_cache.read_frames(SAMPLE, 3)
    maps, pts_seconds = cache.clip("one#1.mp4")
    assert maps.shape == (3, 60, 80)
    assert pts_seconds.tolist() == frames.pts_seconds.tolist()
    assert np.array_equal(maps[2], cache["one#1.mp4#2"])
    expected = predict_density(model, frames, (60, 80)).numpy()
    assert 0.5 * np.abs(maps - expected).sum((1, 2)).max() < 0.01
    again = build_map_cache(model, videos, tmp_path / "maps", "videos", num_frames=3)
    assert (again.num_written, again.num_already_done) == (0, 2)


# --- stops ---


@pytest.mark.parametrize("at", [1, 2, 4, 7])
def test_a_stopped_run_goes_on_where_it_was(pictures, model, tmp_path, monkeypatch, at):
    monkeypatch.setattr(map_cache, "_SHARD_MAPS", 2)
    build_map_cache(model, pictures, tmp_path / "whole")
    with monkeypatch.context() as patch:
        Stops(patch, model, at)
        with pytest.raises(KeyboardInterrupt):
            build_map_cache(model, pictures, tmp_path / "maps")
    kept = (at - 1) // 2 * 2
    counter = Stops(monkeypatch, model, 0)
    report = build_map_cache(model, pictures, tmp_path / "maps")
    assert (report.num_already_done, report.num_written) == (kept, 7 - kept) == (kept, counter.calls)
    whole, cache = read_map_cache(tmp_path / "whole"), read_map_cache(tmp_path / "maps")
    assert set(cache) == set(whole) == set(NAMES)
    assert all(np.array_equal(cache[name], whole[name]) for name in NAMES)


@pytest.mark.parametrize("at", range(1, 6))
@pytest.mark.parametrize("after", [False, True])
def test_a_stop_while_a_file_is_written_loses_no_other(pictures, model, tmp_path, monkeypatch, at, after):
    """The record and four shards are put in place; a kill comes before or after one of these."""
    monkeypatch.setattr(map_cache, "_SHARD_MAPS", 2)
    replace, calls = os.replace, 0

    def stop(source, target):
        nonlocal calls
        calls += 1
        if calls == at and not after:
            raise KeyboardInterrupt
        replace(source, target)
        if calls == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(map_cache.os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            build_map_cache(model, pictures, tmp_path / "maps")
    report = build_map_cache(model, pictures, tmp_path / "maps")
    shards_done = at - 1 if after else max(at - 2, 0)
    assert report.num_already_done == min(2 * shards_done, 7)
    assert set(read_map_cache(tmp_path / "maps")) == set(NAMES)


def test_maps_are_written_after_a_minute(pictures, model, tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr(map_cache.time, "monotonic", lambda: float(next(clock)))
    build_map_cache(model, pictures, tmp_path / "maps")
    with np.load(tmp_path / "maps" / "maps-000000.npz") as shard:
        assert shard["names"].tolist() == NAMES[:3]


# --- what is refused, and what is told ---


def test_other_settings_are_refused(pictures, model, tmp_path):
    output = tmp_path / "maps"
    build_map_cache(model, pictures, output)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.png").write_bytes((pictures / "a.png").read_bytes())
    for message, changes in (
        (r"size \[60, 80\], not \[30, 40\]", {"size": (30, 40)}),
        ("teacher 'spectral_residual', not 'center'", {"model": create_saliency("center")}),
        ("options {}, not {'sigma': 1.0}", {"options": {"sigma": 1.0}}),
        ("source .*pictures', not .*elsewhere'", {"source": elsewhere}),
        ("kind 'images', not 'videos'.*num_frames None, not 8", {"kind": "videos"}),
    ):
        with pytest.raises(ValueError, match=f"was made with .*{message}.*name another folder"):
            build_map_cache(**{"model": model, "source": pictures, "output": output, **changes})
    assert build_map_cache(model, pictures, output).num_already_done == 7


def test_other_weights_are_refused(pictures, tmp_path):
    networks = [TorchSaliency(torch.nn.Conv2d(3, 1, 1)) for _ in range(2)]
    assert weights_sha256(networks[0]) == weights_sha256(networks[0]) != weights_sha256(networks[1])
    assert weights_sha256(create_saliency("center")) is None
    build_map_cache(networks[0], pictures, tmp_path / "maps")
    with pytest.raises(ValueError, match="weights_sha256 '"):
        build_map_cache(networks[1], pictures, tmp_path / "maps")


def test_a_backbones_own_code_is_told_apart(pictures, tmp_path):
    """As another run would that goes on with its maps, records or scores."""
    code = tmp_path / "mine.py"
    code.write_text(
        "import salcap\nclass Mine(salcap.SaliencyModel):\n    def forward(self, p, t=None): return p[:, 0]\n"
    )
    build_map_cache(create_saliency(f"{code}:Mine"), pictures, tmp_path / "maps")
    captioner = salcap.SaliencyCaptioner.from_pretrained("salcap-mini", saliency=f"{code}:Mine")
    salcap.caption_corpus(captioner, ["missing.mp4"], tmp_path / "out.jsonl", num_workers=0)
    code.write_text(code.read_text().replace("p[:, 0]", "-p[:, 0]"))
    with pytest.raises(ValueError, match="weights_sha256 '"):
        build_map_cache(create_saliency(f"{code}:Mine"), pictures, tmp_path / "maps")
    captioner = salcap.SaliencyCaptioner.from_pretrained("salcap-mini", saliency=f"{code}:Mine")
    with pytest.raises(ValueError, match=r"made with other settings \(saliency_sha256: "):
        salcap.caption_corpus(captioner, ["missing.mp4"], tmp_path / "out.jsonl", num_workers=0)


def test_the_map_of_a_picture_that_changed_is_not_taken_for_its_own(pictures, model, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a.png", "b.png"):
        (source / name).write_bytes((pictures / "a.png").read_bytes())
    build_map_cache(model, source, tmp_path / "maps")
    Image.new("RGB", (8, 8)).save(source / "b.png")
    report = build_map_cache(model, source, tmp_path / "maps")
    assert (report.num_already_done, list(report.failures)) == (1, ["b.png"])
    assert report.failures["b.png"].startswith("changed since its map was made")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kind": "image"}, "kind must be images or videos, got 'image'"),
        ({"size": (0, 5)}, "must be at least 1"),
        ({"num_frames": 0}, "must be at least 1"),
        ({"source": "missing"}, "there is no folder"),
        ({"output": "pictures/maps"}, "lies inside"),
        ({"source": "empty"}, "holds no files"),
    ],
)
def test_build_map_cache_fails_on_wrong_use(pictures, model, tmp_path, changes, message):
    (tmp_path / "empty").mkdir()
    for key in {"source", "output"} & changes.keys():
        changes = {**changes, key: tmp_path / changes[key]}
    with pytest.raises(ValueError, match=message):
        build_map_cache(**{"model": model, "source": pictures, "output": tmp_path / "maps", **changes})


def test_read_map_cache_fails_on_what_is_none(pictures, model, tmp_path):
    folder = tmp_path / "maps"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="salcap saliency-cache makes them"):
        read_map_cache(folder)
    maps = np.full((1, 2, 3), 255, np.uint8)
    np.savez(folder / "x.npz", names=np.array(["a"]), maps=maps)
    assert read_map_cache(folder).record == {}
    with pytest.raises(ValueError, match="another program made"):
        build_map_cache(model, pictures, folder)
    np.savez(folder / "y.npz", names=np.array(["a"]), maps=maps)
    with pytest.raises(ValueError, match="two maps of 'a'"):
        read_map_cache(folder)
    np.savez(folder / "y.npz", names=np.array(["b"]), maps=maps.swapaxes(1, 2))
    with pytest.raises(ValueError, match="several sizes"):
        read_map_cache(folder)
    np.savez(folder / "y.npz", names=np.array(["b"]), maps=maps.astype(float))
    with pytest.raises(ValueError, match=r"y.npz must hold names \(N,\) and maps"):
        read_map_cache(folder)
    (folder / "y.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"y.npz cannot be read"):
        read_map_cache(folder)


def test_the_command_lists_what_it_could_not_read(pictures, tmp_path):
    (pictures / "notes.txt").write_text("no picture")
    (pictures / "c.png").write_bytes((pictures / "c.png").read_bytes()[:200])
    arguments = ("--teacher", "center", "--images", pictures, "--output", tmp_path / "maps", "--option", "sigma=0.1")
    result = run(*arguments, "--size", "12x16", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["num_written"], set(report["failures"])) == (6, {"notes.txt", "c.png"})
    assert "error: notes.txt: UnidentifiedImageError" in result.stderr
    assert "error: c.png: " in result.stderr
    cache = read_map_cache(tmp_path / "maps")
    assert cache.record["options"] == {"sigma": 0.1}
    center = predict_density(create_saliency("center", sigma=0.1), _frames(50, 70), (12, 16))
    assert 0.5 * np.abs(cache["a.png"] - center[0].numpy()).sum() < 0.005
    (pictures / "notes.txt").unlink()
    Image.new("RGB", (9, 9)).save(pictures / "c.png")
    result = run(*arguments, "--size", "12x16")
    assert result.exit_code == 0
    assert result.stdout == "1 written, 6 already there, 0 failed\n"


def test_the_command_caches_videos_with_a_teacher_from_a_file(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "clip.mp4").write_bytes(SAMPLE.read_bytes())
    (videos / "broken.mp4").write_bytes(SAMPLE.read_bytes()[:100])
    (tmp_path / "mine.py").write_text("from salcap.saliency.baselines import Center as Mine\n")
    teacher = f"{tmp_path / 'mine.py'}:Mine"
    result = run("--teacher", teacher, "--videos", videos, "--output", tmp_path / "maps", "--num-frames", 2)
    assert result.exit_code == 1
    assert "error: broken.mp4: VideoDecodeError" in result.stderr
    cache = read_map_cache(tmp_path / "maps")
    assert (list(cache), cache.record["teacher"]) == (["clip.mp4#0", "clip.mp4#1"], teacher)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "give either --images or --videos"),
        (("--images", ".", "--videos", "."), "give either --images or --videos"),
        (("--images", ".", "--num-frames", "3"), "--num-frames is for --videos"),
        (("--images", ".", "--size", "60"), "--size must be HEIGHTxWIDTH"),
        (("--images", "missing"), "there is no folder"),
        (("--images", ".", "--option", "sigma"), "--option must be NAME=VALUE"),
        (("--images", ".", "--option", "sigma=[1"), "a value that is not YAML"),
        (("--images", ".", "--option", "sigma_x=1"), "sigma_x"),
        (("--images", ".", "--option", "sigma=0"), "sigma must be finite and above 0"),
        (("--images", ".", "--weights", "x.bin"), "path"),
    ],
)
def test_the_command_refuses_wrong_use(tmp_path, arguments, message):
    result = run("--teacher", "center", "--output", tmp_path / "maps", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "maps").exists()


def _frames(height, width):
    return Frames(torch.zeros(1, 3, height, width, dtype=torch.uint8), torch.zeros(1))
