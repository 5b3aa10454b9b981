"""Training of the bundled captioner, on a handful of rendered pictures."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import GPT2Config, GPT2LMHeadModel

from salcap.captioners import load_captioner
from salcap.config import POLICIES, Weighting
from salcap.datasets.captioned_images import iter_density_maps, load_captioned_images
from salcap.efficientnet_lite import load_imagenet_trunk
from salcap.frames import Frames
from salcap.optimisation import WeightAverage
from salcap.pictures.plots import draw_plot
from salcap.training import captioner as training
from salcap.training.cider_reward import CiderReward
from salcap.training.feature_cache import FeatureCache, View, crop_density, draw_view, render_view
from salcap.training.mixture import draw_log_density, draw_weighting
from salcap.training.settings import CaptionerTraining, DataSettings, ModelSettings, SaliencyDefaults, StageSettings
from salcap.training.text import clean_caption, pack_captions, read_sentences, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
SHAPES = ("circle", "square")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Coloured shapes with captions: 12 to train on, 6 to validate, teacher maps for all but one of them."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "images").mkdir()
    (root / "maps").mkdir()
    rng = np.random.default_rng(0)
    lines, names, maps = [], [], []
    for split, copies in (("train", 2), ("val", 1)):
        for colour, rgb in COLOURS.items():
            for shape in SHAPES:
                for copy in range(copies):
                    name = f"{split}-{colour}-{shape}-{copy}.png"
                    image = Image.new("RGB", (80, 64), (200, 200, 200))
                    left, top = rng.integers(5, 40, 2) // (1, 2)
                    draw = ImageDraw.Draw(image)
                    (draw.ellipse if shape == "circle" else draw.rectangle)((left, top, left + 28, top + 28), fill=rgb)
                    image.save(root / "images" / name)
                    captions = [f"A {colour} {shape} .", f"a {shape} that is {colour}"]
                    lines.append(json.dumps({"image": name, "captions": captions, "split": split}))
                    density = np.zeros((60, 80), np.float32)
                    density[top : top + 28, left : left + 28] = 1.0
                    names.append(name)
                    maps.append(np.round(255 * np.sqrt(density)).astype(np.uint8))
    (root / "captions.jsonl").write_text("\n".join(lines))
    np.savez(root / "maps" / "part0.npz", names=np.array(names[1:]), maps=np.stack(maps[1:]))
    return root


@pytest.fixture(scope="module")
def settings(pictures) -> CaptionerTraining:
    return CaptionerTraining(
        output=str(pictures / "run"),
        data=DataSettings(
            images=(str(pictures),),
            validation=str(pictures),
            cache=str(pictures / "cache"),
            density_maps=str(pictures / "maps"),
            sentences=(str(pictures / "captions.jsonl"),),
            num_views=3,
        ),
        model=ModelSettings(
            trunk="lite0", image_size=64, hidden_size=32, encoder_layers=1, decoder_layers=1, heads=2,
            intermediate_size=64, dropout=0.0, vocab_size=300, most_tokens=16,
        ),
        stages=(
            StageSettings("language", epochs=2, batch_size=8, learning_rate=3e-3, warmup_steps=1),
            StageSettings("caption", epochs=20, batch_size=6, learning_rate=1e-2, warmup_steps=5, captions=2),
            StageSettings("caption", epochs=2, batch_size=6, learning_rate=1e-3, captions=2, trunk_rate=0.1),
            StageSettings("reward", epochs=1, batch_size=6, learning_rate=1e-4, warmup_steps=1, captions=3),
        ),
        saliency=SaliencyDefaults("center", "prune", "stratified", 0.5),
        ema_decay=0.8,
        checkpoint_steps=3,
    )  # fmt: skip


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def trained(settings) -> Path:
    return training.CaptionerTrainer(settings).run()


def test_training_teaches_what_is_in_the_picture(trained, settings, pictures):
    records = [json.loads(line) for line in (Path(settings.output) / "log.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["stage"] == "caption"]
    assert losses[-1] < 0.5 * losses[0]
    assert [record["stage"] for record in records][-1] == "reward"
    assert "cider_d_foveate" in draw_plot(Path(settings.output), pictures / "curves.svg").read_text()
    captioner = load_captioner(str(trained))
    right = 0
    for item in load_captioned_images(pictures, "val"):
        pixels = torch.from_numpy(np.array(Image.open(item.path).resize((64, 64)))).permute(2, 0, 1)
        (said,) = captioner.generate([Frames(pixels[None], [0.0])], None, Weighting())
        right += item.image_id.split("-")[1] in said.text
    assert right >= 4  # chance is 2 of 6


def test_the_saved_captioner_is_whole_and_small(trained):
    assert {"config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json"} <= {
        path.name for path in trained.iterdir()
    }
    parameters = sum(p.numel() for p in load_captioner(str(trained)).model.parameters())
    assert (trained / "model.safetensors").stat().st_size < 2.2 * parameters  # float16, tied weights stored once
    captioner = load_captioner(str(trained))
    assert captioner.default_saliency == "center"
    assert captioner.default_weighting == Weighting("prune", "stratified", 0.5)


def test_only_the_trunks_tail_is_tuned(trained):
    before = load_imagenet_trunk("lite0").half().state_dict()
    after = load_captioner(str(trained)).model.encoder.trunk.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(after[name], value.float())}
    assert "blocks.11.project.weight" in changed
    assert all(name.startswith("head.") or int(name.split(".")[1]) >= 11 for name in changed)


@pytest.mark.parametrize("stop_after", [2, 10, 47])
def test_a_killed_run_resumes_to_the_same_weights(trained, settings, tmp_path, monkeypatch, stop_after):
    resumed = replace(settings, output=str(tmp_path))
    steps = 0
    original = WeightAverage.update

    def update(self) -> None:
        nonlocal steps
        original(self)
        steps += 1
        if steps == stop_after:
            raise Killed

    monkeypatch.setattr(WeightAverage, "update", update)
    with pytest.raises(Killed):
        training.CaptionerTrainer(resumed).run()
    monkeypatch.undo()
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"stage": "reward", "epoch": 9}\n{"stage": "rew')  # after the checkpoint, the last one torn
    again = load_captioner(str(training.CaptionerTrainer(resumed).run())).model.state_dict()
    for name, value in load_captioner(str(trained)).model.state_dict().items():
        assert torch.equal(again[name], value), name
    logs = [(folder / "log.jsonl").read_text().splitlines() for folder in (tmp_path, Path(settings.output))]
    found, expected = ([(r["stage"], r["epoch"]) for r in map(json.loads, log)] for log in logs)
    assert found == expected


def test_a_finished_run_is_not_taken_for_one_of_other_settings(trained, settings):
    with pytest.raises(ValueError, match="other settings"):
        training.CaptionerTrainer(replace(settings, seed=1)).run()


def test_training_without_teacher_maps(settings, tmp_path):
    stages = (StageSettings("caption", epochs=1, batch_size=6, learning_rate=1e-2),)
    plain = replace(
        settings, output=str(tmp_path), stages=stages, data=replace(settings.data, density_maps=None, sentences=())
    )
    training.CaptionerTrainer(plain).run()
    assert "cider_d_foveate" in (tmp_path / "log.jsonl").read_text()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"kind": "rewards"}, "allowed: language, caption, reward"),
        ({"kind": "reward", "captions": 1}, "at least 2, got 1"),
        ({"kind": "caption", "batch_size": 0}, "at least 1, got 0"),
    ],
)
def test_wrong_stages_fail(values, message):
    with pytest.raises(ValueError, match=message):
        StageSettings(**{"epochs": 1, "batch_size": 2, "learning_rate": 0.1, **values})


def test_a_cache_of_other_settings_is_refused(settings, pictures):
    items = load_captioned_images(pictures, "train")
    folder = Path(settings.data.cache) / pictures.name
    with pytest.raises(ValueError, match="name another cache folder"):
        FeatureCache(folder, items, {}, trunk="lite0", num_views=2, image_size=64).build()


def test_cached_features_are_the_trunks(trained, settings, pictures):
    items = load_captioned_images(pictures, "train")
    maps = dict(iter_density_maps(pictures / "maps"))
    cache = FeatureCache(
        Path(settings.data.cache) / pictures.name, items, maps, trunk="lite0", num_views=3, image_size=64
    )
    cache.build()  # all there already
    pixels = render_view(Image.open(items[3].path), draw_view(items[3].image_id, 2, 0), 64)
    with torch.inference_mode():
        features = load_imagenet_trunk("lite0").eval()(torch.tensor(pixels).permute(2, 0, 1)[None] / 255)
    torch.testing.assert_close(
        torch.from_numpy(cache.features[3, 2]).float(), features[2][0].flatten(1).T, atol=0.02, rtol=0.01
    )
    assert np.isnan(cache.density(0, 0)).all()  # its map is missing
    assert cache.density(1, 2).sum() == pytest.approx(1.0, abs=1e-4)


def test_views_move_the_map_with_the_picture():
    """A bright square in picture and map: in every view they cover the same cells."""
    image = Image.new("RGB", (80, 64))
    ImageDraw.Draw(image).rectangle((50, 10, 69, 29), fill=(255, 255, 255))
    density = np.asarray(image.convert("F")).repeat(2, 0).repeat(2, 1)
    for index in range(8):
        view = replace(draw_view("a.jpg", index, 0), brightness=1.0, contrast=1.0, colour=1.0)
        seen = torch.from_numpy(render_view(image, view, 64).astype(np.float32)).mean(-1)
        pooled = torch.nn.functional.avg_pool2d(seen[None, None], 16)[0, 0]
        mapped = torch.from_numpy(crop_density(density / density.sum(), view, 4))
        assert (pooled / pooled.sum() - mapped).abs().max() < 0.03


def test_views_are_the_same_on_every_machine_and_differ():
    assert draw_view("a.jpg", 0, 0) == View()
    assert draw_view("a.jpg", 3, 7).box == pytest.approx((0.03198, 0.12752, 0.98436, 0.92387), abs=1e-4)
    assert len({draw_view(name, index, 0).box for name in ("a", "b") for index in (2, 3)}) == 4


def test_density_maps_decode(tmp_path):
    stored = np.array([[[0, 255], [128, 0]]], np.uint8)
    np.savez(tmp_path / "x.npz", names=np.array(["a.jpg"]), maps=stored)
    ((name, density),) = iter_density_maps(tmp_path)
    assert name == "a.jpg"
    half = (128 / 255) ** 2
    assert density == pytest.approx(np.array([[0, 1], [half, 0]]) / (1 + half), abs=1e-6)


@pytest.mark.parametrize(
    "raw, cleaned",
    [
        ('A man \'s dog -- "jumps" , over it .', "a man's dog jumps over it"),
        ("A tri-colored dog\n", "a tri-colored dog"),
        ("caf\u00e9 _ 'quoted' 5 people!", "caf\u00e9 quoted 5 people"),
    ],
)
def test_clean_caption(raw, cleaned):
    assert clean_caption(raw) == cleaned


def test_tokenizer_writes_back_what_it_read():
    tokenizer = train_tokenizer(["a dog runs", "two men play"] * 20, 300)
    for text in ("a dog runs", "zebras' \u00fcbung 42"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text


def test_sentences_of_test_videos_are_never_read(shared):
    data = shared / "data" / "captions"
    for name in ("msrvtt/test_videodatainfo.json.gz",):
        assert read_sentences(data / name, 5) == []
    train = read_sentences(data / "msvd" / "msvd_captions.json.gz", 1000)
    captions = json.loads(gzip.decompress((data / "msvd" / "msvd_captions.json.gz").read_bytes()))
    later = [clean_caption(c) for key, cs in captions.items() if int(key[3:]) > 1200 for c in cs]
    rare = [text for text, count in Counter(later).items() if count == 1 and len(text.split()) > 12]
    assert len(train) > 10_000
    assert len(set(rare) & set(train)) < 0.01 * len(rare)
    assert len(read_sentences(data / "msrvtt" / "train_val_videodatainfo.json.gz", 2)) <= 2 * 6513


def test_packed_captions_are_read_as_if_alone():
    torch.manual_seed(0)
    decoder = GPT2LMHeadModel(
        GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=16, add_cross_attention=True,
                   bos_token_id=1, eos_token_id=2)
    ).eval()  # fmt: skip
    visual = torch.randn(2, 5, 16)
    rows = [[[5, 6, 7], [8]], [[9, 10], [11, 12, 13, 14]]]
    packed = pack_captions(rows, 1, 2, 0, 4)
    inputs = {key: packed[key] for key in ("input_ids", "attention_mask", "position_ids")}
    with torch.no_grad():
        logits = decoder(**inputs, encoder_hidden_states=visual, use_cache=False).logits
        for image, captions in enumerate(rows):
            for index, caption in enumerate(captions):
                alone = torch.tensor([[1, *caption][:4]])
                expected = decoder(alone, encoder_hidden_states=visual[image : image + 1]).logits[0]
                mine = packed["caption_index"][image] == index
                torch.testing.assert_close(logits[image][mine], expected)
                assert packed["labels"][image][mine].tolist() == [*caption, 2][:4]
    assert (packed["labels"][packed["caption_index"] < 0] == -100).all()


def test_cider_reward_agrees_with_pycocoevalcap():
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    rng = np.random.default_rng(0)
    words = np.array(["a", "dog", "man", "runs", "on", "the", "green", "grass", "with", "red", "ball", "and", "plays"])
    references = [[" ".join(rng.choice(words, rng.integers(4, 9))) for _ in range(4)] for _ in range(12)]
    reward = CiderReward(references)
    scorer = CiderScorer(n=4, sigma=6.0)
    for texts in references:
        # theirs has no end-of-sentence word: give it one
        scorer += (f"{texts[0][2:]} </s>", [f"{text} </s>" for text in texts])
    _, expected = scorer.compute_score()
    ours = [reward(i, texts[0][2:]) for i, texts in enumerate(references)]
    assert ours == pytest.approx(list(expected), rel=0.02)
    assert min(ours) < max(ours)


def test_mixture_draws_every_policy_with_and_without_scaling():
    rng = np.random.default_rng(0)
    drawn = [draw_weighting(rng) for _ in range(400)]
    assert {w.policy for w in drawn if "prune" in w.modes} == set(POLICIES)
    assert {w.mode for w in drawn} == {"none", "scale", "prune", "scale+prune"}
    density = torch.full((2, 2, 4, 4), 1 / 16)
    density[1] = torch.nan
    for _ in range(30):
        maps = draw_log_density(rng, density)
        assert maps.shape == density.shape
        torch.testing.assert_close(maps.exp().sum((-2, -1)), torch.ones(2, 2))


def test_a_short_training_is_not_averaged_with_its_first_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, decay=0.999)
    values = []
    for n in range(1, 101):
        model.weight.data.fill_(float(n))
        average.update()
        values.append(average.values["weight"].item())
    wanted = 0.0  # by hand, from weights that no longer count
    for n in range(1, 101):
        wanted += (n - wanted) * (1 - (1 + n) / (10 + n))
    assert values[-1] == pytest.approx(wanted, rel=1e-5)
    assert values[-1] > 80  # with the full decay from the start it would be 5
    other = WeightAverage(torch.nn.Linear(1, 1, bias=False), decay=0.999)
    other.load_state_dict(average.state_dict())
    model.weight.data.fill_(0.0)
    other._learnt["weight"].data.fill_(0.0)
    average.update()
    other.update()
    assert other.values["weight"].item() == average.values["weight"].item()
