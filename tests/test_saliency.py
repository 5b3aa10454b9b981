"""The backbone contract, kept by everything that is registered, and the registry."""

from __future__ import annotations

import gzip
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import salcap
from salcap.frames import Frames
from salcap.saliency import (
    SaliencyModel,
    create_saliency,
    list_saliency,
    normalise_log_density,
    register_saliency,
    registry,
    resize_log_density,
    saliency_errors,
)
from salcap.saliency.streams import StreamModel
from salcap.weighting import relative_saliency

# those that need a file which no package brings: tests of their own hold them to the contract
WITHOUT_WEIGHTS = ("attention_center", "fastgaze", "glimpse", "uva_net_32")
every_backbone = pytest.mark.parametrize("name", [name for name in list_saliency() if name not in WITHOUT_WEIGHTS])
SIZES = [(1, 1), (1, 9), (7, 1), (33, 47), (96, 64), (5, 900), (700, 3)]


def draw_pixels(num_frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth scenes with a bright square in a place of its own in each."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(num_frames, 3, 6, 8, generator=generator) * 160
    pixels = torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")
    for frame in pixels:
        top, left = (int(torch.randint(0, side, (), generator=generator)) for side in (height, width))
        frame[:, top : top + height // 8 + 1, left : left + width // 8 + 1] += 95
    return pixels.to(torch.uint8)


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    for attribute in ("_factories", "_broken", "_tried"):
        monkeypatch.setattr(registry, attribute, getattr(registry, attribute).copy())


# --- what every backbone keeps ---


@every_backbone
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_frames", [1, 3])
def test_predict_gives_a_log_density_at_the_frames_size(name, size, num_frames):
    log_density = create_saliency(name).predict(draw_pixels(num_frames, *size))
    assert log_density.shape == (num_frames, *size)
    assert log_density.dtype == torch.float32
    assert not log_density.requires_grad
    assert bool(torch.isfinite(log_density).all())
    torch.testing.assert_close(log_density.exp().sum((1, 2)), torch.ones(num_frames), rtol=0, atol=1e-4)


@every_backbone
@pytest.mark.parametrize("size", [(20, 31), (90, 160)])
def test_predict_gives_the_size_that_is_asked(name, size):
    model, pixels = create_saliency(name), draw_pixels(2, 48, 64)
    asked, native = model.predict(pixels, size), model.predict(pixels, "native")
    assert asked.shape == (2, *size)
    torch.testing.assert_close(asked, resize_log_density(native, size))
    for maps in (asked, native):
        torch.testing.assert_close(maps.exp().sum((1, 2)), torch.ones(2), rtol=0, atol=1e-4)


@every_backbone
def test_predict_reads_every_kind_of_frames_alike(name):
    model, pixels = create_saliency(name), draw_pixels(3, 30, 44)
    expected = model.predict(pixels)
    array = pixels.permute(0, 2, 3, 1).numpy()
    array.setflags(write=False)
    assert torch.equal(model.predict(Frames(pixels[:1], torch.zeros(1))), model.predict(pixels[:1]))
    if not isinstance(model, StreamModel):  # which see motion where they are told the times
        assert torch.equal(model.predict(Frames(pixels, torch.arange(3.0))), expected)
    assert torch.equal(model.predict(array), expected)
    assert torch.equal(model.predict(array[:, ::-1, ::-1]), model.predict(pixels.flip(2, 3)))
    assert torch.equal(model.predict(pixels.mT.contiguous().mT), expected)


@every_backbone
def test_predict_is_deterministic_and_independent_of_the_batch(name):
    pixels = draw_pixels(3, 48, 64)
    together = create_saliency(name).predict(pixels)
    assert torch.equal(create_saliency(name).predict(pixels), together)
    alone = torch.cat([create_saliency(name).predict(frame[None]) for frame in pixels])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)


@every_backbone
@pytest.mark.parametrize("value", [0, 77, 255])
def test_predict_survives_frames_without_content(name, value):
    log_density = create_saliency(name).predict(torch.full((2, 3, 40, 60), value, dtype=torch.uint8))
    assert bool(torch.isfinite(log_density).all())


@every_backbone
def test_predict_follows_the_model_to_its_device_and_dtype(name):
    pixels = draw_pixels(2, 48, 64)
    expected = create_saliency(name).predict(pixels)
    half = create_saliency(name).to(torch.bfloat16).predict(pixels)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.exp().sum((1, 2)), torch.ones(2), rtol=0, atol=1e-4)
    if torch.cuda.is_available():
        model = create_saliency(name).to("cuda")
        assert model.device.type == "cuda"
        on_device = model.predict(pixels)
        assert on_device.device.type == "cuda"
        torch.testing.assert_close(on_device.cpu(), expected, rtol=1e-3, atol=1e-3)


@every_backbone
def test_gradients_are_off_and_weights_are_in_eval(name):
    model = create_saliency(name)
    assert isinstance(model, SaliencyModel)
    assert model.name == name
    assert not model.training


@pytest.mark.parametrize(
    "frames, message",
    [
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"must be \(T, 3, H, W\) uint8, got \(2, 8, 8, 3\)"),
        (torch.zeros(2, 3, 8, 8), "uint8, got .* torch.float32"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), r"got \(0, 3, 8, 8\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"must be \(T, H, W, 3\) uint8, got \(2, 3, 8, 8\)"),
        (np.zeros((2, 8, 8, 3), np.float64), "uint8, got .* float64"),
        ("clip.mp4", "got str"),
    ],
)
def test_predict_fails_on_other_frames(frames, message):
    with pytest.raises(ValueError, match=message):
        create_saliency("center").predict(frames)


@pytest.mark.parametrize("size", ["small", (0, 5)])
def test_predict_fails_on_other_sizes(size):
    with pytest.raises(ValueError, match="size must be"):
        create_saliency("center").predict(draw_pixels(1, 8, 8), size)


# --- each backbone ---


def test_uniform_is_exactly_constant_and_exactly_neutral():
    for size in SIZES:
        log_density = create_saliency("uniform").predict(draw_pixels(2, *size))
        assert torch.equal(log_density, log_density[:1, :1, :1].expand_as(log_density))
        assert torch.equal(relative_saliency(log_density, (14, 14)), torch.ones(2, 196))


def test_center_is_a_gaussian_of_a_quarter_of_each_side():
    density = create_saliency("center").predict(draw_pixels(1, 96, 160))[0].exp().double()
    for side, marginal in ((96, density.sum(1)), (160, density.sum(0))):
        place = (torch.arange(side) + 0.5) / side
        expected = torch.exp(-((place - 0.5) ** 2) / (2 * 0.25**2)).double()
        torch.testing.assert_close(marginal, expected / expected.sum(), rtol=0.05, atol=0)
    narrow = create_saliency("center", sigma=0.1).predict(draw_pixels(1, 96, 160))[0].exp()
    assert narrow.max() > density.max()


def test_random_follows_seed_and_content():
    pixels = draw_pixels(2, 48, 64)
    first = create_saliency("random").predict(pixels)
    assert not torch.allclose(first[0], first[1], atol=0.5)
    assert not torch.allclose(create_saliency("random", seed=1).predict(pixels), first, atol=0.5)
    corner = create_saliency("random", cells=1).predict(pixels)
    torch.testing.assert_close(corner, torch.full_like(corner, -float(np.log(48 * 64))))
    black = create_saliency("random").predict(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "native")[0]
    row, column = divmod(int(black.argmax()), 64)
    assert (row // 8, column // 8) == (6, 0)  # the same cell on every machine


def test_spectral_residual_finds_the_odd_one_out():
    stripes = (torch.arange(128) // 8 % 2 * 60 + 90).to(torch.uint8).expand(3, 96, 128).clone()
    stripes[:, 40:56, 88:104] = torch.tensor([250, 20, 20], dtype=torch.uint8)[:, None, None]
    density = create_saliency("spectral_residual", center_prior=False).predict(stripes[None])[0].exp()
    assert float(density[36:60, 84:108].mean()) > 4 * float(density.mean())


@pytest.mark.parametrize("center_prior", [False, True])
def test_spectral_residual_of_a_constant_frame_is_uniform(center_prior):
    pixels = torch.stack([torch.full((3, 50, 70), 128), draw_pixels(1, 50, 70)[0]]).to(torch.uint8)
    blank, scene = create_saliency("spectral_residual", center_prior=center_prior).predict(pixels)
    assert torch.equal(blank, blank[:1, :1].expand_as(blank))
    assert float(scene.max() - scene.min()) > 1.0


def test_spectral_residual_predicts_where_people_look_better_than_the_center(shared):
    folder = shared / "data" / "saliency" / "osie"
    with gzip.open(folder / "fixations.json.gz") as file:
        fixations = json.load(file)["fixations"]
    scores: dict[str, list[float]] = {}
    for name in sorted(fixations)[::50]:
        pixels = np.asarray(Image.open(folder / "images" / name).convert("RGB"))[None]
        points = np.array([point[:2] for subject in fixations[name] for point in subject]) * 512 / 800
        x, y = points.astype(int).T
        inside = (x >= 0) & (x < 512) & (y >= 0) & (y < 384)
        for label, model in {
            "center": create_saliency("center"),
            "prior": create_saliency("spectral_residual"),
            "plain": create_saliency("spectral_residual", center_prior=False),
            "random": create_saliency("random"),
        }.items():
            density = model.predict(pixels)[0].exp()
            nss = (density - density.mean()) / density.std()
            scores.setdefault(label, []).append(float(nss[y[inside], x[inside]].mean()))
    mean = {label: float(np.mean(values)) for label, values in scores.items()}
    assert mean["prior"] > mean["plain"] > mean["center"] > mean["random"] + 0.3


# --- density ---


def test_normalise_log_density_sums_to_one_whatever_the_constant():
    logits = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(0)).double()
    log_density = normalise_log_density(logits + 1e4)
    torch.testing.assert_close(
        log_density.double(), logits.flatten(2).log_softmax(2).view_as(logits), rtol=0, atol=1e-2
    )
    torch.testing.assert_close(log_density.exp().sum((2, 3)), torch.ones(2, 3))


def test_resize_log_density_keeps_shape_mass_and_constants():
    y, x = torch.meshgrid(torch.linspace(-2, 2, 40), torch.linspace(-2, 2, 60), indexing="ij")
    log_density = normalise_log_density(-(y.square() + x.square()))
    there = resize_log_density(log_density, (20, 30))
    torch.testing.assert_close(there, resize_log_density(log_density[None], (20, 30))[0])
    back = resize_log_density(there, (40, 60))
    assert float((back.exp() - log_density.exp()).abs().sum()) < 0.03
    constant = resize_log_density(torch.full((13, 17), -7.7), (29, 8))
    assert torch.equal(constant, constant[:1, :1].expand_as(constant))


def test_resize_log_density_takes_impossible_pixels():
    log_density = torch.full((1, 8, 8), float("-inf"))
    log_density[0, 2:4, 4:6] = 0.0
    resized = resize_log_density(log_density, (4, 4))
    assert bool(torch.isfinite(resized).all())
    assert float(resized[0, 1, 2].exp()) > 0.99


@pytest.mark.parametrize(
    "value, match", [(float("nan"), "NaN"), (float("inf"), "inf"), (float("-inf"), "finite value")]
)
def test_densities_fail_on_maps_that_cannot_be_normalised(value, match):
    for act in (normalise_log_density, lambda maps: resize_log_density(maps, (2, 2))):
        with pytest.raises(ValueError, match=match):
            act(torch.full((2, 4, 4), value))


# --- contract of plug-ins ---


class Brightness(SaliencyModel):
    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, pixels: Tensor, pts_seconds: Tensor | None = None) -> Tensor:
        self.seen_pts_seconds = pts_seconds
        return self.gain * pixels.mean(1)


def test_a_registered_backbone_is_one_of_all():
    register_saliency("brightness", Brightness)
    register_saliency("brightness", Brightness)  # a module that is imported twice
    assert "brightness" in salcap.list_saliency()
    model, pixels = create_saliency("brightness", gain=3.0), draw_pixels(2, 20, 30)
    expected = (3 * pixels.float().mean(1) / 255).flatten(1).log_softmax(1).view(2, 20, 30)
    torch.testing.assert_close(model.predict(pixels), expected)
    assert model.seen_pts_seconds is None
    model.predict(Frames(pixels, torch.tensor([0.5, 2.0])))
    assert model.seen_pts_seconds.tolist() == [0.5, 2.0]

    @register_saliency("dark")
    def make_dark() -> SaliencyModel:
        return Brightness(gain=-1.0)

    assert create_saliency("dark").predict(pixels).argmin() == model.predict(pixels).argmax()
    assert make_dark().gain == -1.0


def test_register_saliency_fails_on_a_taken_name():
    with pytest.raises(ValueError, match="'center' is already registered"):
        register_saliency("center", Brightness)
    with pytest.raises(TypeError, match="a name and a callable"):
        register_saliency("mine", "Brightness")


def test_create_saliency_fails_naming_the_closest():
    with pytest.raises(ValueError, match="did you mean 'spectral_residual'"):
        create_saliency("spectral_residuals")
    with pytest.raises(TypeError, match="sigma_x"):
        create_saliency("center", sigma_x=1.0)
    register_saliency("number", lambda: 3)
    with pytest.raises(TypeError, match="'number' must make a SaliencyModel, got int"):
        create_saliency("number")


@pytest.mark.parametrize(
    "answer, message",
    [
        (lambda pixels: None, "must return a floating point tensor, got NoneType"),
        (lambda pixels: pixels.argmax(1), "must return a floating point tensor, got torch.int64"),
        (lambda pixels: pixels, r"must return \(2, h, w\) for 2 frames, got \(2, 3, 8, 9\)"),
        (lambda pixels: pixels[:1, 0], r"for 2 frames, got \(1, 8, 9\)"),
        (lambda pixels: pixels[:, 0, :0], "unusable map: .* at least one pixel"),
        (lambda pixels: pixels[:, 0] / 0 * 0, "unusable map: .* NaN"),
        (lambda pixels: torch.full_like(pixels[:, 0], float("-inf")), "unusable map: .* finite value"),
    ],
)
def test_predict_fails_naming_a_backbone_that_breaks_the_contract(answer, message):
    class Broken(SaliencyModel):
        def forward(self, pixels: Tensor, pts_seconds: Tensor | None = None) -> Tensor:
            return answer(pixels)

    register_saliency("broken", Broken)
    with pytest.raises(ValueError, match=f"saliency backbone 'broken' .*{message}"):
        create_saliency("broken").predict(draw_pixels(2, 8, 9))


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """An installed package with four entry points, of which one works."""
    (tmp_path / "gaze_plugin.py").write_text(
        "from salcap.saliency import SaliencyModel\n"
        "class Left(SaliencyModel):\n"
        "    def forward(self, pixels, pts_seconds=None):\n"
        "        return -pixels.new_ones(pixels[:, 0].shape).cumsum(-1)\n"
        "constant = 3\n"
    )
    (tmp_path / "gaze_plugin_broken.py").write_text("import a_package_that_is_not_installed\n")
    folder = tmp_path / "gaze_plugin-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: gaze-plugin\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[salcap.saliency]\n"
        "bad_import = gaze_plugin_broken:Model\n"
        "left = gaze_plugin:Left\n"
        "not_callable = gaze_plugin:constant\n"
        "center = gaze_plugin:Left\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_plugins_are_found_and_broken_ones_named(plugins, caplog):
    with caplog.at_level(logging.WARNING, logger="salcap"):
        names = list_saliency()
    assert {"left", "center", "uniform"} <= set(names)
    assert not {"bad_import", "not_callable"} & set(names)
    reasons = saliency_errors()
    assert "a_package_that_is_not_installed" in reasons["bad_import"]
    assert "not_callable" in reasons["not_callable"]
    assert "already registered" in reasons["center"]
    for name in reasons:
        assert sum(repr(name) in record.getMessage() for record in caplog.records) == 1
    assert int(create_saliency("left").predict(draw_pixels(1, 5, 7))[0, 2].argmax()) == 0
    assert type(create_saliency("center")).__module__.startswith("salcap.")


def test_create_saliency_fails_with_the_reason_of_a_broken_plugin(plugins):
    with pytest.raises(ValueError, match=r"'bad_import' is unavailable: ModuleNotFoundError: .*_not_installed") as info:
        create_saliency("bad_import")
    assert isinstance(info.value.__cause__, ModuleNotFoundError)
    assert create_saliency("left").name == "left"
