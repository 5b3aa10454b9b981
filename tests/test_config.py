"""Settings: what a weighting may be, and YAML files whose mistakes are named."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path

import pytest

from salcap.config import MODES, POLICIES, Weighting, load_config

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Stage:
    kind: str
    rate: float = 0.1

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate must be > 0, got {self.rate}")


@dataclass(frozen=True)
class Run:
    output: str
    epochs: int
    stages: tuple[Stage, ...] = ()
    weighting: Weighting = field(default_factory=Weighting)
    size: tuple[int, int] = (1, 1)
    cache: str | None = None
    scale: int | str = 1
    quick: bool = False
    limits: dict[str, float] = field(default_factory=dict)


def read(text: str, tmp_path: Path) -> Run:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, Run)


@pytest.mark.parametrize("mode", [*MODES, "scale+prune", "bias+scale+prune"])
@pytest.mark.parametrize("policy", POLICIES)
def test_weighting_takes_every_mode_and_policy(mode: str, policy: str) -> None:
    weighting = Weighting(mode=mode, policy=policy)
    assert "+".join(weighting.modes) == mode
    with pytest.raises(FrozenInstanceError):
        weighting.mode = "none"  # type: ignore[misc]


def test_default_weighting_is_the_unmodified_captioner() -> None:
    assert Weighting().modes == ("none",)
    assert Weighting().keep_ratio == 1.0


def test_a_limit_for_the_clip_is_shared_over_the_clip_unless_told_otherwise() -> None:
    assert Weighting("prune", keep_ratio=0.5).scope == "frame"
    assert Weighting("prune", max_visual_tokens=64).scope == "clip"
    assert Weighting("prune", max_visual_tokens=64, scope="frame").scope == "frame"
    assert Weighting("prune", keep_ratio=0.5, max_visual_tokens=64) == Weighting(
        "prune", keep_ratio=0.5, max_visual_tokens=64, scope="clip"
    )


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mode": "prunes"}, r"unknown mode 'prunes', allowed: none, scale, bias, prune, zoom; did you mean 'prune'\?"),
        ({"mode": ""}, "unknown mode ''"),
        ({"mode": "scale+crop"}, "unknown mode 'crop'"),
        ({"mode": "none+prune"}, r"'none' cannot be combined, got 'none\+prune'"),
        ({"mode": "scale+scale"}, r"one mode twice, got 'scale\+scale'"),
        ({"policy": "foveat"}, "unknown policy 'foveat'.*did you mean 'foveate'"),
        ({"scope": "video"}, "unknown scope 'video', allowed: auto, frame, clip"),
        ({"mode": "prune", "keep_ratio": 0.0}, r"keep_ratio must be in \(0, 1\], got 0.0"),
        ({"mode": "prune", "keep_ratio": 1.5}, "got 1.5"),
        ({"mode": "prune", "keep_ratio": float("nan")}, "got nan"),
        ({"mode": "scale", "keep_ratio": 0.5}, "keep_ratio 0.5 needs a mode with 'prune', got mode 'scale'"),
        ({"max_visual_tokens": 64}, "max_visual_tokens 64 needs a mode with 'prune', got mode 'none'"),
        ({"mode": "scale", "min_keep": 2}, "min_keep 2 needs a mode with 'prune', got mode 'scale'"),
        ({"mode": "prune", "max_visual_tokens": 0}, "max_visual_tokens must be a whole number from 1, got 0"),
        ({"mode": "prune", "max_visual_tokens": 0.5}, "whole number from 1, got 0.5"),
        ({"mode": "prune", "max_visual_tokens": True}, "whole number from 1, got True"),
        ({"mode": "prune", "min_keep": 0}, "min_keep must be a whole number from 1, got 0"),
        ({"mode": "prune", "min_keep": None}, "min_keep must be a whole number from 1, got None"),
        ({"zoom": 1}, "zoom must be above 1 and finite, got 1"),
        ({"zoom": float("nan")}, "got nan"),
        ({"strength": -0.1}, "strength must be >= 0 and finite, got -0.1"),
        ({"strength": float("inf")}, "got inf"),
        ({"strength": float("nan")}, "got nan"),
        ({"strength": "a"}, "strength must be a number, got 'a'"),
        ({"mode": "prune", "keep_ratio": ".5"}, "keep_ratio must be a number, got '.5'"),
        ({"mode": 3}, "mode must be a name of none, .*, got 3"),
        ({"seed": "x"}, "seed must be a whole number of 64 bits, got 'x'"),
        ({"seed": 1.5}, "got 1.5"),
        ({"seed": 2**70}, "got 1180591620717411303424"),
    ],
)
def test_weighting_fails(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Weighting(**settings)  # type: ignore[arg-type]


def test_load_config_builds_nested_values(tmp_path: Path) -> None:
    text = """
    output: café
    epochs: 3
    stages: [{kind: a}, {kind: b, rate: 2}]
    weighting: {mode: prune, policy: top, keep_ratio: 0.5}
    size: [3, 4]
    cache: null
    scale: half
    quick: true
    limits: {low: 1, high: 2.5}
    """
    assert read(text, tmp_path) == Run(
        output="café",
        epochs=3,
        stages=(Stage("a"), Stage("b", 2.0)),
        weighting=Weighting("prune", "top", 0.5),
        size=(3, 4),
        scale="half",
        quick=True,
        limits={"low": 1.0, "high": 2.5},
    )


def test_load_config_keeps_defaults_and_turns_integers_into_floats(tmp_path: Path) -> None:
    run = read("{output: x, epochs: 1, stages: [{kind: a, rate: 1}]}", tmp_path)
    assert run == Run("x", 1, (Stage("a", 1.0),))
    assert isinstance(run.stages[0].rate, float)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{output: x, epoch: 1}", r"run\.yaml: unknown key 'epoch'; did you mean 'epochs'\?"),
        ("{output: x, zzz: 1}", "unknown key 'zzz'; allowed: output, epochs, stages"),
        ("{output: x, 7: 1}", "unknown key 7"),
        (
            "{output: x, epochs: 1, stages: [{kind: a}, {kind: b, rat: 1}]}",
            r"stages\[1\]: unknown key 'rat'; did you mean 'rate'",
        ),
        ("{output: x}", "missing 1 required positional argument: 'epochs'"),
        ("", r"missing 2 required positional arguments: 'output' and 'epochs'"),
        ("{output: x, epochs: many}", "epochs: expected int, got 'many'"),
        ("{output: x, epochs: 1.5}", r"epochs: expected int, got 1\.5"),
        ("{output: x, epochs: true}", "epochs: expected int, got True"),
        ("{output: x, epochs: null}", "epochs: expected int, got None"),
        ("{output: 3, epochs: 1}", "output: expected str, got 3"),
        ("{output: x, epochs: 1, quick: 1}", "quick: expected bool, got 1"),
        ("{output: x, epochs: 1, stages: {kind: a}}", "stages: expected a list"),
        ("{output: x, epochs: 1, stages: [a]}", r"stages\[0\]: expected keys and values for Stage, got 'a'"),
        ("{output: x, epochs: 1, size: [1, 2, 3]}", r"size: expected 2 values, got \[1, 2, 3\]"),
        ("{output: x, epochs: 1, size: [1, b]}", r"size\[1\]: expected int, got 'b'"),
        ("{output: x, epochs: 1, cache: 3}", "cache: expected str, got 3"),
        ("{output: x, epochs: 1, scale: 1.5}", r"scale: expected int, got 1\.5"),
        ("{output: x, epochs: 1, scale: null}", "scale: expected int, got None"),
        ("{output: x, epochs: 1, limits: {low: a}}", "limits: low: expected float, got 'a'"),
        ("{output: x, epochs: 1, limits: [1]}", "limits: expected keys and values"),
        ("{output: x, epochs: 1, stages: [{kind: a, rate: 0}]}", r"run\.yaml: stages\[0\]: rate must be > 0, got 0"),
        ("{output: x, epochs: 1, weighting: {mode: prun}}", r"run\.yaml: weighting: unknown mode 'prun'"),
        ("- output", "expected keys and values for Run"),
        ("output: [", r"run\.yaml is not YAML"),
    ],
)
def test_load_config_fails(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read(text, tmp_path)


def test_load_config_fails_without_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config file .*absent\.yaml"):
        load_config(tmp_path / "absent.yaml", Run)


def test_load_config_fails_on_other_bytes(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"output: \xff\xfe")
    with pytest.raises(ValueError, match=r"run\.yaml is not YAML"):
        load_config(tmp_path / "run.yaml", Run)


def test_a_file_goes_on_from_another(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "output: a\nepochs: 1\nweighting: {mode: prune, keep_ratio: 0.5}\nstages: [{kind: x}, {kind: y}]\n"
    )
    (tmp_path / "middle.yaml").write_text("extends: base.yaml\nepochs: 2\nweighting: {keep_ratio: 0.25}\n")
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "run.yaml").write_text("extends: ../middle.yaml\nstages: [{kind: z}]\n")
    run = load_config(folder / "run.yaml", Run)
    assert (run.output, run.epochs, run.stages) == ("a", 2, (Stage("z"),))
    assert run.weighting == Weighting("prune", keep_ratio=0.25)


@pytest.mark.parametrize(
    "text, error, message",
    [
        ("extends: run.yaml\n", ValueError, "run.yaml extends itself"),
        ("extends: nowhere.yaml\n", FileNotFoundError, "no config file .*nowhere.yaml, which .*run.yaml extends"),
    ],
)
def test_a_file_that_goes_on_from_nothing_fails(tmp_path: Path, text: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        read(text, tmp_path)
