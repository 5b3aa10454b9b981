"""Distillation end to end, on images drawn here: every method teaches, a run goes on where it was stopped."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from salcap.config import build_dataclass
from salcap.datasets.captioned_images import encode_density
from salcap.distill.data import Batch, Clips, Stills, View
from salcap.distill.losses.densities import correlation, ground_truth_at_grid
from salcap.distill.methods import create_method
from salcap.distill.motion import add_motion
from salcap.distill.networks import create_student
from salcap.distill.settings import Distillation, ModelSpec, ValidationSource
from salcap.distill.trainer import Distiller
from salcap.saliency.density import normalise_log_density
from salcap.saliency.streams import Streams
from salcap.saliency.uva_net import UvaNet

TINY = {"image_size": 32, "widths": [8, 8, 8, 8], "depths": [1, 1, 1]}
COUNT = 10


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Bright discs on dark ground: people look at the disc, and so does the teacher "disc"."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    fixations, maps = {}, []
    (root / "images").mkdir()
    y, x = np.mgrid[:48, :64]
    for i in range(COUNT):
        cx, cy = rng.uniform(10, 54), rng.uniform(10, 38)
        disc = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 30)
        Image.fromarray((disc[..., None] * [250, 220, 180]).astype(np.uint8)).save(root / "images" / f"{i}.png")
        fixations[f"{i}.png"] = [[[cx + dx, cy + dy, 200] for dx, dy in rng.normal(0, 2, (6, 2))] for _ in range(2)]
        maps.append(encode_density((disc / disc.sum())[None].astype(np.float32))[0])
    index = {"original_size": [64, 48], "fixations": fixations}
    (root / "fixations.json.gz").write_bytes(gzip.compress(json.dumps(index).encode()))
    (root / "maps").mkdir()
    np.savez(root / "maps" / "maps-000000.npz", names=np.array(sorted(fixations)), maps=np.stack(maps))
    return root


def settings(root: Path, output: Path, *stages: dict, **more) -> Distillation:
    unlabelled = {"folder": str(root / "images"), "maps": {"disc": str(root / "maps")}}
    labelled = {"folder": str(root), "maps": {"disc": str(root / "maps")}, "fixations": "osie", "split": "all"}
    values = {
        "output": str(output),
        "student": {"name": "uva_net", "options": TINY},
        "data": {"cache": str(root / "cache"), "images": [unlabelled, labelled]},
        "stages": [{"steps": 3, "batch_size": 8, "warmup_steps": 1, **stage} for stage in stages],
        **more,
    }
    return build_dataclass(Distillation, values, "test")


def run(config: Distillation) -> UvaNet:
    return UvaNet.from_pretrained(Distiller(config, lambda line: None).run())


@pytest.fixture(scope="module")
def trained(root) -> Path:
    """A student of the same shape that has learnt a little."""
    run(settings(root, root / "trained", {"losses": {"soft": {"teachers": {"disc": 1.0}}}, "steps": 20}))
    return root / "trained" / "model"


METHODS = {
    "ground_truth": {"losses": {"ground_truth": {}}, "images": "labelled"},
    "soft": {"losses": {"soft": {"teachers": {"disc": 1.0}}}},
    "coupled": {"losses": {"coupled": {"spatial": "disc", "temporal": "disc"}}, "moving": 1.0, "num_frames": 2},
    "fused": {"losses": {"fused": {"teachers": ["disc"]}}, "moving": 1.0, "num_frames": 3},
    "statistics": {"losses": {"statistics": {"teacher": "live"}}},
    "generative": {"losses": {"generative": {"teacher": "live", "maps": "disc", "hidden": 8}}},
    "see_little": {
        "losses": {"see_little": {"teacher": "live", "prediction": 1.0}},
        "moving": 1.0,
        "num_frames": 4,
        "seen_frames": 2,
    },
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_teaches_and_leaves_the_teacher_alone(root, trained, tmp_path, name):
    live = {"live": {"name": "uva_net", "checkpoint": str(trained)}}
    stage = {**METHODS[name], "learning_rate": 0.01, "steps": 25}
    distiller = Distiller(settings(root, tmp_path, stage, teachers=live), lambda line: None)
    before = [p.detach().clone() for p in distiller.student.parameters()]
    teacher = {key: value.clone() for key, value in distiller.teachers["live"].state_dict().items()}
    distiller.run()
    assert any(not torch.equal(a, b) for a, b in zip(before, distiller.student.parameters(), strict=True))
    assert all(torch.equal(teacher[key], value) for key, value in distiller.teachers["live"].state_dict().items())


def test_a_student_learns_where_the_disc_is(root, tmp_path):
    stage = {"losses": {"soft": {"teachers": {"disc": 1.0}}}, "steps": 150, "learning_rate": 0.01}
    model = run(settings(root, tmp_path, stage, ema_decay=0.9))
    hits = 0
    for i in range(COUNT):
        pixels = np.asarray(Image.open(root / "images" / f"{i}.png"))
        density = model.predict(pixels[None])[0].exp()
        hits += float(density[torch.from_numpy(pixels[..., 0] > 125)].mean() / density.mean()) > 3
    assert hits >= 8


def test_partners_learn_from_each_other_and_are_saved(root, trained, tmp_path):
    partner = {"name": "uva_net", "options": TINY, "checkpoint": str(trained)}
    stage = {"losses": {"collaborative": {"partners": {"a": partner, "b": partner}}}, "images": "labelled"}
    model = run(settings(root, tmp_path, stage))
    start = UvaNet.from_pretrained(trained)
    saved = UvaNet.from_pretrained(tmp_path / "partners" / "a")
    assert not torch.equal(saved.stem[0].conv.weight, start.stem[0].conv.weight)
    assert not torch.equal(model.stem[0].conv.weight, start.stem[0].conv.weight)


def test_a_run_ends_with_a_card(root, tmp_path):
    """Also one that has nothing left to do when it is started again, and of a run with validation its scores."""
    (tmp_path / "val").mkdir()
    points = json.loads(gzip.decompress((root / "fixations.json.gz").read_bytes()))["fixations"]["0.png"]
    index = {"original_size": [64, 48], "fixations": {"0.png": points}}
    (tmp_path / "val" / "fixations.json.gz").write_bytes(gzip.compress(json.dumps(index).encode()))
    (tmp_path / "val" / "images").mkdir()
    (tmp_path / "val" / "images" / "0.png").write_bytes((root / "images" / "0.png").read_bytes())
    config = settings(root, tmp_path / "run", METHODS["soft"], METHODS["ground_truth"])
    validation = [ValidationSource("osie", str(tmp_path / "val"), "all")]
    config = replace(config, data=replace(config.data, validation=tuple(validation)))
    for _ in range(2):
        run(config)
        card = (tmp_path / "run" / "model" / "README.md").read_text()
        assert "# uva_net" in card
        assert f"{sum(p.numel() for p in create_student(config.student).parameters()):,} parameters" in card
        assert "3 steps of 8 frames with soft. Then 3 steps of 8 frames with ground_truth" in card
        assert f"images of `{root}` with fixations (osie, all), maps of disc" in card
        last = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()][-1]
        assert f"| osie nss | {last['scores']['osie_nss']} |" in card
        described = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
        assert build_dataclass(Distillation, described, "card") == config


def test_correlation_is_learnt_beside_the_divergence(root, tmp_path):
    """The weight changes the loss by 1 - CC times it, and nothing where the prediction is the target."""
    distiller = Distiller(settings(root, tmp_path, METHODS["soft"]), lambda line: None)
    batch = distiller.stills.batch(np.arange(COUNT, 2 * COUNT), np.random.default_rng(0))
    streams = distiller.student.cpu().eval().streams(batch.pixels)
    for name, options, target in (
        ("ground_truth", {}, batch.density),
        ("soft", {"teachers": {"disc": 2.0}}, batch.teachers["disc"].exp()),
    ):
        plain = create_method(name, distiller.context, options)
        more = create_method(name, distiller.context, {**options, "correlation": 0.5})
        grid = ground_truth_at_grid(target, streams.fused)
        expected = 0.5 * (1 - correlation(normalise_log_density(streams.fused), grid))
        assert expected.min() > 0.01
        torch.testing.assert_close(more(streams, batch, 1) - plain(streams, batch, 1), expected.mean())
        perfect = Streams(grid, None, grid, ())
        assert float(more(perfect, batch, 1)) == pytest.approx(0, abs=1e-5)


class Killed(Exception):
    pass


def outline(folder: Path) -> list[tuple[int, int | None, bool]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(record["stage"], record.get("step"), "scores" in record) for record in records]


@pytest.mark.parametrize("at", [2, 5, 6, 9])
@pytest.mark.parametrize("method", ["generative", "coupled"])
def test_a_killed_run_ends_as_if_it_had_not_been(root, trained, tmp_path, monkeypatch, at, method):
    live = {"live": {"name": "uva_net", "checkpoint": str(trained)}}
    stages = ({**METHODS["soft"], "steps": 5}, {**METHODS[method], "steps": 5})
    whole = run(settings(root, tmp_path / "whole", *stages, teachers=live, checkpoint_steps=2))
    config = settings(root, tmp_path / "killed", *stages, teachers=live, checkpoint_steps=2)
    taken, batch = [], Distiller._batch

    def kill(self, *arguments):
        taken.append(1)
        if len(taken) == at + 1:
            raise Killed
        return batch(self, *arguments)

    monkeypatch.setattr(Distiller, "_batch", kill)
    with pytest.raises(Killed):
        run(config)
    with (tmp_path / "killed" / "log.jsonl").open("a") as log:
        log.write('{"stage": 1, "step": 4}\n{"stage": 1, "sco')  # after the checkpoint, the last one torn by the kill
    resumed = run(config)
    assert outline(tmp_path / "killed") == outline(tmp_path / "whole")
    assert outline(tmp_path / "whole") == [(stage, step, step is None) for stage in (0, 1) for step in (5, None)]
    tolerance = 1e-3 if torch.cuda.is_available() else 0.0  # the order of CUDA's sums is open
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[key], value, rtol=0, atol=tolerance, msg=key)


def test_a_checkpoint_of_other_settings_is_refused(root, tmp_path):
    config = settings(root, tmp_path, {**METHODS["soft"], "steps": 2})
    run(config)
    with pytest.raises(ValueError, match="other settings"):
        run(replace(config, seed=1))


@pytest.mark.parametrize(
    "stage, message",
    [
        ({"losses": {"sofd": {}}}, "unknown method 'sofd'.*did you mean 'soft'"),
        ({"losses": {"soft": {"teacher": "disc"}}}, "method 'soft' does not take"),
        ({"losses": {"soft": {"teachers": {"nobody": 1.0}}}}, "no maps of teacher 'nobody', only of .'disc'"),
        ({"losses": {"statistics": {"teacher": "nobody"}}}, "no live teacher 'nobody'"),
        ({"losses": {"see_little": {"teacher": "nobody"}}}, "must be a trained network"),
        ({"losses": {"soft": {"teachers": {"disc": 1.0}}}, "images": "some"}, "unknown images 'some'"),
        ({"losses": {"soft": {"teachers": {"disc": 1.0}}}, "num_frames": 2, "seen_frames": 3}, "seen_frames"),
        ({"losses": {"collaborative": {"partners": {"a": {"name": "center"}}}}}, "not trained here"),
        ({"losses": {"collaborative": {"partners": {"a": {"nam": "uva_net"}}}}}, "unknown key 'nam'"),
    ],
)
def test_wrong_stages_are_refused(root, tmp_path, stage, message):
    with pytest.raises(ValueError, match=message):
        run(settings(root, tmp_path, stage))


def test_shares_of_images_that_there_are_not_are_refused(root, tmp_path):
    config = settings(root, tmp_path, {**METHODS["soft"], "labelled_share": 0.5})
    for image, message in ((0, "takes images with fixations, and the data has none"), (1, "without fixations too")):
        data = replace(config.data, images=config.data.images[image : image + 1])
        with pytest.raises(ValueError, match=message):
            Distiller(replace(config, data=data), lambda line: None)


def test_images_that_changed_are_read_again(root, tmp_path):
    config = settings(root, tmp_path / "out", METHODS["soft"])
    (tmp_path / "a").mkdir()
    found = []
    for grey in (0, 255):
        Image.new("RGB", (64, 48), (grey,) * 3).save(tmp_path / "a" / "x.png")
        data = replace(
            config.data,
            cache=str(tmp_path),
            images=(replace(config.data.images[0], folder=str(tmp_path / "a"), maps={}),),
        )
        still = Stills(data, (32, 32), lambda line: None)
        found.append(float(still.pixels(np.array([0]), View.random(np.random.default_rng(0), 1, 1.0), (32, 32)).mean()))
    assert found == pytest.approx([0.0, 1.0], abs=0.01)


def test_a_finished_run_whose_log_is_torn_is_still_finished(root, tmp_path):
    config = settings(root, tmp_path, METHODS["soft"])
    folder = Distiller(config, lambda line: None).run()
    (folder / "README.md").unlink()
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"stage": 0, "sco')
    run(config)
    assert (folder / "README.md").is_file()


def test_missing_maps_are_named(root, tmp_path):
    np.savez(tmp_path / "maps-000000.npz", names=np.array(["0.png"]), maps=np.ones((1, 4, 4), np.uint8))
    config = settings(root, tmp_path / "out", METHODS["soft"])
    source = replace(config.data.images[0], maps={"disc": str(tmp_path)})
    with pytest.raises(ValueError, match=r"no map of 1\.png"):
        Stills(replace(config.data, images=(source,)), (32, 32), lambda line: None)


@pytest.fixture(scope="module")
def stills(root) -> Stills:
    return Stills(settings(root, root, METHODS["soft"]).data, (32, 32), lambda line: None)


def centre_of(density: torch.Tensor) -> torch.Tensor:
    """(N, 2) mean x and y in shares of the sides."""
    h, w = density.shape[1:]
    density = density / density.sum((1, 2), keepdim=True)
    x, y = (torch.arange(w) + 0.5) / w, (torch.arange(h) + 0.5) / h
    return torch.stack(((density.sum(1) * x).sum(1), (density.sum(2) * y).sum(1)), 1)


def test_pixels_truth_and_maps_are_seen_through_one_view(stills):
    batch = stills.batch(np.arange(COUNT, 2 * COUNT), np.random.default_rng(1))
    assert batch.pixels.shape == (COUNT, 1, 3, 32, 32)
    assert batch.labelled.all()
    seen = centre_of((batch.pixels[:, 0].mean(1) - batch.pixels[:, 0].mean(1).amin((1, 2), keepdim=True)) ** 2)
    taught = centre_of(batch.teachers["disc"].exp())
    truth = centre_of(batch.density)
    inside = ((taught > 0.2) & (taught < 0.8)).all(1)
    assert inside.sum() >= 4
    assert (taught - truth)[inside].abs().max() < 0.06
    assert (taught - seen)[inside].abs().max() < 0.12
    torch.testing.assert_close(batch.density.sum((1, 2)), torch.ones(COUNT))


def test_a_view_mirrors_and_crops():
    picture = torch.arange(8.0).expand(2, 1, 4, 8)
    mirror = View(torch.tensor([[[-1.0, 0, 0], [0, 1, 0]], [[0.5, 0, 0.5], [0, 0.5, 0]]]))
    seen = mirror.of(picture)
    torch.testing.assert_close(seen[0, 0, 0], torch.arange(7.0, -1, -1))
    torch.testing.assert_close(seen[1, 0, 0], torch.linspace(3.75, 7.25, 8).clamp(max=7))


def test_what_moves_draws_looks(stills):
    still = stills.batch(np.arange(8), np.random.default_rng(0))
    clip = add_motion(still, 4, np.random.default_rng(0))
    assert clip.pixels.shape == (8, 4, 3, 32, 32)
    assert clip.pts_seconds.shape == (8, 4)
    assert (clip.pts_seconds.diff() > 0).all()
    assert clip.labelled.shape == (32,)
    assert clip.motion.shape == clip.density.shape == clip.teachers["disc"].shape
    change = (clip.pixels[:, 1:] - clip.pixels[:, :-1]).abs().mean((2, 3, 4))
    assert (change.amax(1) > 0).any()
    at_thing = (clip.teachers["disc"].exp() * (clip.motion > clip.motion.amax((1, 2), keepdim=True) / 2)).sum((1, 2))
    before = still.teachers["disc"].exp().repeat_interleave(4, 0)
    at_thing_before = (before * (clip.motion > clip.motion.amax((1, 2), keepdim=True) / 2)).sum((1, 2))
    assert (at_thing > at_thing_before - 0.05).float().mean() > 0.9


def test_the_frames_a_student_sees_keep_their_targets(stills):
    clip = add_motion(stills.batch(np.arange(4), np.random.default_rng(0)), 4, np.random.default_rng(0))
    some = clip.frames(torch.tensor([1, 3]))
    assert isinstance(some, Batch)
    assert some.whole is clip
    assert torch.equal(some.pixels, clip.pixels[:, [1, 3]])
    assert torch.equal(some.pts_seconds, clip.pts_seconds[:, [1, 3]])
    assert torch.equal(some.density.unflatten(0, (4, 2)), clip.density.unflatten(0, (4, 4))[:, [1, 3]])


def test_clips_of_videos_come_with_their_maps(tmp_path):
    from salcap.distill.map_cache import build_map_cache
    from salcap.distill.settings import ClipSource
    from salcap.saliency import create_saliency

    videos = tmp_path / "videos"
    videos.mkdir()
    sample = Path(__file__).resolve().parents[1] / "data" / "sample.mp4"
    (videos / "a.mp4").write_bytes(sample.read_bytes())
    (videos / "about.json").write_text("{}")
    build_map_cache(create_saliency("center"), videos, tmp_path / "maps", "videos", num_frames=5, pattern="*.mp4")
    data = build_dataclass(
        Distillation,
        {
            "output": "x",
            "student": {"name": "uva_net"},
            "data": {"cache": "x", "images": [{"folder": "x"}]},
            "stages": [{"losses": {"soft": {}}, "steps": 1}],
        },
        "test",
    ).data
    source = ClipSource(str(videos), "*.mp4", {"center": str(tmp_path / "maps")}, 5)
    clips = Clips([source], data, (32, 32))
    batch = clips.batch(3, 4, np.random.default_rng(0))
    assert batch.pixels.shape == (3, 4, 3, 32, 32)
    assert batch.teachers["center"].shape[0] == 12
    assert not batch.labelled.any()
    torch.testing.assert_close(batch.teachers["center"].exp().sum((1, 2)), torch.ones(12), atol=1e-3, rtol=0)
    build_map_cache(create_saliency("center"), videos, tmp_path / "maps2", "videos", num_frames=2, pattern="*.mp4")
    with pytest.raises(ValueError, match="2 teacher maps; make them"):
        Clips([replace(source, maps={"center": str(tmp_path / "maps2")})], data, (32, 32))
    with pytest.raises(ValueError, match="have no maps of 'center', which other clips have"):
        Clips([source, replace(source, maps={})], data, (32, 32))
    (videos / "b.mp4").write_bytes(sample.read_bytes())
    with pytest.raises(ValueError, match=r"maps has no maps of b\.mp4; run salcap saliency-cache again"):
        Clips([source], data, (32, 32))


@pytest.mark.parametrize(
    "spec, message",
    [
        (ModelSpec("center"), "'center' is not trained here, allowed: effnet_teacher, uva_net, uva_net_32"),
        (ModelSpec("uva_net", {"size": 3}), "does not take"),
        (ModelSpec("uva_net", {"image_size": 40}), "multiple of 32, got 40"),
        (ModelSpec("uva_net", {}, "nowhere"), "checkpoint nowhere"),
    ],
)
def test_wrong_students_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        create_student(spec)
