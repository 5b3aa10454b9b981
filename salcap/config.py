"""Settings: how a saliency map acts on a captioner, and small YAML files read into frozen dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

MODES = ("none", "scale", "bias", "prune", "zoom")
POLICIES = ("top", "stratified", "foveate", "random", "pool")

T = TypeVar("T")


@dataclass(frozen=True)
class Weighting:
    """What a saliency map does to the visual tokens.

    Attributes:
        mode: "none", "scale", "bias", "prune", "zoom", or several joined by "+" ("scale+prune").
        policy: which tokens ``prune`` keeps; "random" and "pool" are controls that do not look at the map.
        keep_ratio: share of the patch tokens that ``prune`` keeps, in (0, 1].
        scope: how frames share the clip's budget: "frame" the same for all, "clip" by their saliency mass; "auto" is
            "clip" where ``max_visual_tokens`` is given and "frame" elsewhere.
        max_visual_tokens: most tokens of a clip, prefix tokens among them, as `Caption.visual_tokens` counts; None: no
            limit. With a ``keep_ratio`` the smaller of the two budgets holds. A clip that fits keeps every patch.
        min_keep: fewest patch tokens in a frame's budget (all of them, where it has no more); raises what
            ``keep_ratio`` leaves, and a ``max_visual_tokens`` that has no room for it is an error.
        strength: how far ``scale`` and ``bias`` go; 0 changes nothing.
        zoom: how much closer the crop of ``zoom`` is than the frame, above 1; 2 shows half of each side.
        seed: of the random policies; a whole number of 64 bits.

    Raises:
        ValueError: a value that is none of these, modes that cannot be combined, a budget without "prune".
    """

    mode: str = "none"
    policy: str = "foveate"
    keep_ratio: float = 1.0
    scope: str = "auto"
    max_visual_tokens: int | None = None
    min_keep: int = 1
    strength: float = 0.5
    zoom: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("keep_ratio", "strength", "zoom"):
            if not isinstance(getattr(self, name), Real):
                raise ValueError(f"{name} must be a number, got {getattr(self, name)!r}")
        if type(self.seed) is not int or not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must be a whole number of 64 bits, got {self.seed!r}")
        for mode in self.modes:
            check_choice("mode", mode, MODES)
        if len(set(self.modes)) < len(self.modes):
            raise ValueError(f"mode names one mode twice, got {self.mode!r}")
        if len(self.modes) > 1 and "none" in self.modes:
            raise ValueError(f"mode 'none' cannot be combined, got {self.mode!r}")
        check_choice("policy", self.policy, POLICIES)
        check_choice("scope", self.scope, ("auto", "frame", "clip"))
        if self.scope == "auto":
            object.__setattr__(self, "scope", "frame" if self.max_visual_tokens is None else "clip")
        if not 0.0 < self.keep_ratio <= 1.0:
            raise ValueError(f"keep_ratio must be in (0, 1], got {self.keep_ratio}")
        for name in ("max_visual_tokens", "min_keep"):
            number = getattr(self, name)
            if (type(number) is not int or number < 1) and (name, number) != ("max_visual_tokens", None):
                raise ValueError(f"{name} must be a whole number from 1, got {number!r}")
        for name, neutral in (("keep_ratio", 1.0), ("max_visual_tokens", None), ("min_keep", 1)):
            if getattr(self, name) != neutral and "prune" not in self.modes:
                raise ValueError(f"{name} {getattr(self, name)} needs a mode with 'prune', got mode {self.mode!r}")
        if not 0.0 <= self.strength < math.inf:
            raise ValueError(f"strength must be >= 0 and finite, got {self.strength}")
        if not 1.0 < self.zoom < math.inf:
            raise ValueError(f"zoom must be above 1 and finite, got {self.zoom}")

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that ``mode`` joins."""
        return _split_modes(self.mode)


def resolve_weighting(default: Weighting, **given: Any) -> Weighting:
    """A captioner's default weighting changed by what a user gave; None means not given.

    A ``keep_ratio`` below 1 or a ``max_visual_tokens`` alone adds "prune" to the default mode; either replaces the
    default's budget of both. A mode without "prune" keeps all patches.

    Raises:
        ValueError: an option that the mode would ignore, or "prune" without a budget.
    """
    given = {name: value for name, value in given.items() if value is not None}
    limit = given.get("max_visual_tokens")
    mode = given.get("mode", default.mode)
    if not isinstance(given.get("keep_ratio", 1.0), Real):
        raise ValueError(f"keep_ratio must be a number, got {given['keep_ratio']!r}")
    if "mode" not in given and (limit is not None or given.get("keep_ratio", 1.0) < 1.0) and "prune" not in mode:
        mode = given["mode"] = "prune" if mode == "none" else f"{mode}+prune"
    modes = _split_modes(mode)
    reset: dict[str, Any] = {}
    if limit is not None or "keep_ratio" in given or "prune" not in modes:
        reset = {"keep_ratio": 1.0, "max_visual_tokens": None}
        if (limit is None) != (default.max_visual_tokens is None):  # the default's scope went with its kind of budget
            reset["scope"] = "auto"
    if "prune" not in modes:
        reset["min_keep"] = 1
    weighting = dataclasses.replace(default, **{**reset, **given})
    if not reset and default.keep_ratio == 1.0 and default.max_visual_tokens is None:
        raise ValueError(f"mode {mode!r} needs a keep_ratio below 1 or max_visual_tokens")
    for name, users in (
        ("policy", {"prune"}),
        ("scope", {"prune"}),
        ("strength", {"scale", "bias"}),
        ("zoom", {"zoom"}),
    ):
        if name in given and not users & set(modes):
            raise ValueError(
                f"{name} {given[name]!r} does nothing in mode {mode!r}: it needs {' or '.join(sorted(users))}"
            )
    return weighting


def _split_modes(mode: Any) -> tuple[str, ...]:
    if not isinstance(mode, str):
        raise ValueError(f"mode must be a name of {', '.join(MODES)}, or several joined by '+', got {mode!r}")
    return tuple(mode.split("+"))


def check_choice(name: str, value: str, allowed: typing.Sequence[str]) -> None:
    """Raise a ValueError that names what is allowed, and the closest of it, unless ``value`` is."""
    if value not in allowed:
        close = difflib.get_close_matches(str(value), allowed, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown {name} {value!r}, allowed: {', '.join(allowed)}{hint}")


def load_config(path: str | Path, kind: type[T]) -> T:
    """Read a YAML file into a frozen dataclass, nested dataclasses included.

    A file may go on from another one, which its key ``extends`` names relative to itself: keys are merged, and values
    of the file win. Lists are replaced whole.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown key (the nearest known one is named), a missing one, a value of the wrong
            type, or one that the dataclass itself refuses; the message names the file and the place in it.
    """
    return build_dataclass(kind, _read_yaml(Path(path), ()), str(path))


def load_any_config(path: str | Path, kinds: typing.Mapping[str, type[Any]]) -> Any:
    """`load_config` of a file of one of several kinds, each told by a key that it alone has.

    Args:
        kinds: key -> the dataclass of files that have it.

    Raises:
        FileNotFoundError, ValueError: as `load_config`; also where the file has none of the keys, or several.
    """
    values = _read_yaml(Path(path), ())
    found = [key for key in kinds if isinstance(values, dict) and key in values]
    if len(found) != 1:
        wanted = " or ".join(f"{key!r} ({kind.__name__})" for key, kind in kinds.items())
        has = ", ".join(map(repr, values)) if isinstance(values, dict) else repr(values)
        raise ValueError(f"{path}: exactly one of the keys {wanted} says what the file is; it has {has or 'none'}")
    return build_dataclass(kinds[found[0]], values, str(path))


def _read_yaml(path: Path, extending: tuple[Path, ...]) -> Any:
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"no config file {path}" + (f", which {extending[-1]} extends" if extending else ""))
    if path.resolve() in extending:
        raise ValueError(f"{path} extends itself")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    values = {} if values is None else values
    if isinstance(values, dict) and "extends" in values:
        base = _read_yaml(path.parent / str(values.pop("extends")), (*extending, path.resolve()))
        return _merged(base, values)
    return values


def _merged(base: Any, values: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(values, dict)):
        return values
    return {**base, **{key: _merged(base.get(key), value) for key, value in values.items()}}


def build_dataclass(kind: type[T], values: Any, where: str) -> T:
    """Make keys and values a frozen dataclass, checked as `load_config` does; ``where`` names their place in errors."""
    built: T = _build(kind, values, where)
    return built


def _build(kind: Any, value: Any, where: str) -> Any:
    """Make ``value`` the annotated type, naming the place in the file where it cannot be."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected keys and values for {kind.__name__}, got {value!r}")  # type: ignore[union-attr]
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in hints:
                close = difflib.get_close_matches(str(key), hints, 1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; allowed: {', '.join(hints)}"
                raise ValueError(f"{where}: unknown key {key!r}{hint}")
        items = {key: _build(hints[key], item, f"{where}: {key}") for key, item in value.items()}
        try:
            return kind(**items)  # type: ignore[operator]
        except (TypeError, ValueError) as error:  # a key without default is missing, or its own check refuses
            raise ValueError(f"{where}: {error}") from error
    if origin in (typing.Union, types.UnionType):
        return _build_first(typing.get_args(kind), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        kinds = typing.get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) != len(value):
            raise ValueError(f"{where}: expected {len(kinds)} values, got {value!r}")
        return tuple(_build(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected keys and values, got {value!r}")
        return {key: _build(typing.get_args(kind)[1], item, f"{where}: {key}") for key, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is not Any and (not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))):
        raise ValueError(f"{where}: expected {kind.__name__}, got {value!r}")
    return value


def _build_first(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """Make ``value`` the first of ``kinds`` that it can be; if none, the error is that of the first."""
    kinds = tuple(kind for kind in kinds if (kind is type(None)) == (value is None)) or kinds
    errors = []
    for kind in kinds:
        try:
            return _build(kind, value, where)
        except ValueError as error:
            errors.append(error)
    raise errors[0]
