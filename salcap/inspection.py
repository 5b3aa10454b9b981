"""What a captioner's family does with saliency, and self-tests that it does it on this very model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from salcap.captioners import load_captioner
from salcap.config import Weighting
from salcap.frames import Frames

_HEIGHT, _WIDTH = 192, 256  # of the random frames: not square, so that rows and columns cannot be mistaken
_MARGIN = 0.2  # of a cell that the bright square leaves free on each side
_MOST_CELLS = 6  # that the bright square visits
_WRONG_ORDERS = {"mirrored": [1, 0, 3, 2], "upside down": [2, 3, 0, 1], "transposed": [0, 2, 1, 3]}  # of four corners
_LATE_FRAMES = 4  # on which it is tested where tokens are pruned late
_LOW = -30.0  # log-density of where nobody looks
_GENERATION = {"max_new_tokens": 4, "do_sample": False}


@dataclass(frozen=True)
class Check:
    """A self-test: passed or not, None where the family has nothing to test; and what was seen."""

    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Inspection:
    """A captioner seen from saliency's side.

    Attributes:
        family: the class that drives the model; ``model_type`` is the config's.
        modes: that work with this model.
        prunes: where "prune" acts, "before the vision encoder" or "after the vision encoder"; None where it cannot.
        grid: (rows, columns) of the cells of a frame of 192x256 pixels: patches, or the groups of patches that become
            one token. None where no map can be laid over the frames.
        tokens_per_frame: visual tokens of such a frame, or of the frames that share them, not pruned.
        num_prefix_tokens: of them, in front of the cells.
        frames_per_token: frames that share their tokens.
        default_gain: what the strength of "scale" and "bias" is multiplied by; 1 unless it was learned.
        checks: name -> `Check`.
    """

    name: str
    revision: str | None
    model_type: str
    family: str
    parameters: int
    modes: tuple[str, ...]
    prunes: str | None
    max_frames: int | None
    default_saliency: str
    default_weighting: Weighting
    default_gain: float
    grid: tuple[int, int] | None
    tokens_per_frame: int
    num_prefix_tokens: int
    frames_per_token: int
    checks: dict[str, Check]

    @property
    def passed(self) -> bool:
        """Whether no check failed; one that could not run does not count."""
        return all(check.passed is not False for check in self.checks.values())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {**asdict(self), "passed": self.passed}


def inspect(model: Any, processor: Any = None, **options: Any) -> Inspection:
    """Look at a captioner and test it on random frames; takes some dozens of short captions.

    Args:
        model, processor, options: as for `salcap.captioners.load_captioner`, or a captioner that it made, or a
            `salcap.SaliencyCaptioner`.

    Returns:
        What was found, and which self-tests passed.

    Raises:
        OSError, ValueError: a model that cannot be loaded, or that no family knows.
    """
    model = getattr(model, "captioner", model)
    return _Inspector(model if hasattr(model, "plan_clip") else load_captioner(model, processor, **options)).report()


class _FailedError(Exception):
    """A self-test's finding."""


def _require(holds: bool, finding: str) -> None:  # not assert, which python -O leaves out
    if not holds:
        raise _FailedError(finding)


class _Inspector:
    def __init__(self, captioner: Any) -> None:
        self.captioner = captioner
        self.marks = frozenset(captioner.modes) & {"scale", "bias", "prune"}  # what maps do to tokens
        self.grid: tuple[int, int] | None = None
        self.prefix, self.span = 0, 1
        if self.marks:
            self._find_layout()
        self.frames = _noise(self.span, seed=0)
        (self.plain,) = self._run([self.frames])

    def report(self) -> Inspection:
        captioner, before = self.captioner, _state(self.captioner.model)
        checks = {
            "neutral equals none": self._check(self.marks, self._neutral),
            "maps change the output": self._check(self.marks, self._maps_matter),
            "bright square": self._check(self.marks & {"prune"}, self._bright_square),
            "tokens are those reported": self._check(self.marks & {"prune"}, self._tokens),
        }
        changed = [name for name, value in _state(captioner.model).items() if before.get(name) != value]
        checks["nothing left on the model"] = Check(not changed, f"changed: {changed[:3]}" if changed else "no change")
        place = "before the vision encoder" if captioner.early_pruning else "after the vision encoder"
        return Inspection(
            name=captioner.name,
            revision=captioner.revision,
            model_type=captioner.model.config.model_type,
            family=type(captioner).__name__,
            parameters=sum(parameter.numel() for parameter in captioner.model.parameters()),
            modes=tuple(sorted(captioner.modes)),
            prunes=place if "prune" in self.marks else None,
            max_frames=captioner.max_frames,
            default_saliency=captioner.default_saliency,
            default_weighting=captioner.default_weighting,
            default_gain=float(captioner.gain),
            grid=self.grid,
            tokens_per_frame=self.plain.visual_tokens - captioner.num_extra_tokens,
            num_prefix_tokens=self.prefix,
            frames_per_token=self.span,
            checks=checks,
        )

    # ---- the self-tests

    def _check(self, needed: frozenset[str], test: Callable[[], str]) -> Check:
        if not needed:
            return Check(None, f"modes: {', '.join(sorted(self.captioner.modes))}")
        try:
            return Check(True, test())
        except _FailedError as fault:
            return Check(False, str(fault))

    def _neutral(self) -> str:
        """Settings that change nothing give the words and the score of mode "none", bit for bit."""
        settings = {
            "scale": Weighting("scale", strength=0.0),
            "bias": Weighting("bias", strength=0.0),
            "prune": Weighting("prune", keep_ratio=1.0),
        }
        for count in (1, 3):
            clips = [_noise(self.span, seed) for seed in range(count)]
            maps = [_random_map(self.span, seed) for seed in range(count)]
            for beams in (1, 3):
                plain = self._run(clips, num_beams=beams)
                for mode in sorted(self.marks):
                    same = self._run(clips, maps, settings[mode], num_beams=beams)
                    for one, other in zip(plain, same, strict=True):
                        found = (other.text, other.score, other.visual_tokens)
                        expected = (one.text, one.score, one.visual_tokens)
                        _require(found == expected, f"{mode}, {count} clips, {beams} beams: {found} is not {expected}")
        return f"{', '.join(sorted(self.marks))}; 1 and 3 clips, 1 and 3 beams"

    def _maps_matter(self) -> str:
        """A map changes the score, and another map changes it otherwise."""
        for mode in sorted(self.marks):
            weighting = Weighting(mode, policy="top", keep_ratio=0.5 if mode == "prune" else 1.0, strength=1.0)
            scores = {self.plain.score}
            for seed in (1, 2):
                scores.add(self._run([self.frames], [_random_map(self.span, seed)], weighting)[0].score)
            _require(len(scores) == 3, f"{mode}: scores {sorted(scores, key=str)} of no map and two maps")
        return ", ".join(sorted(self.marks))

    def _bright_square(self) -> str:
        """Where one cell alone is kept, inverting the pixels below it moves the logits more than below any other.

        Pruned late, every token has seen the whole frame. There the corners must answer to their own pixels better
        than to those of the corners that a wrong order would put in their places, on the mean of some frames.
        """
        assert self.grid is not None
        rows, columns = self.grid
        if self.captioner.early_pruning:
            cells = _spread(rows * columns, _MOST_CELLS)
            for cell, moves in zip(cells, self._moves(cells, self.frames), strict=True):
                most = cells[int(moves.argmax())]
                _require(most == cell, f"a map that peaks at cell {cell} shows the pixels of cell {most}")
        else:
            cells = [0, columns - 1, (rows - 1) * columns, rows * columns - 1]
            shares = [_shares(self._moves(cells, _noise(self.span, seed))) for seed in range(_LATE_FRAMES)]
            moves = torch.stack(shares).sum(0)
            right = float(moves.trace())
            for name, order in _WRONG_ORDERS.items():
                wrong = float(moves[:, order].trace())
                _require(wrong < right, f"the map seems {name}: {wrong:.3g} against {right:.3g}")
        return f"cells {', '.join(map(str, cells))} of {rows}x{columns}"

    def _tokens(self) -> str:
        """Pruned clips have as many visual tokens as the budget says."""
        assert self.grid is not None
        cells, found = self.grid[0] * self.grid[1], []
        for ratio in (0.5, 0.25):
            weighting = Weighting("prune", policy="top", keep_ratio=ratio)
            (text,) = self._run([self.frames], [_random_map(self.span, 3)], weighting)
            expected = self.prefix + max(1, round(ratio * cells)) + self.captioner.num_extra_tokens
            expected = self.plain.visual_tokens if self.captioner.fixed_tokens else expected
            _require(text.visual_tokens == expected, f"keep {ratio}: {text.visual_tokens} tokens, not {expected}")
            found.append(f"{text.visual_tokens} at {ratio}")
        return f"{self.plain.visual_tokens} whole, {', '.join(found)}"

    # ---- frames, maps, captions

    def _run(
        self, clips: list[Frames], maps: list[Tensor] | None = None, weighting: Weighting | None = None, **more: Any
    ) -> Any:
        return self.captioner.generate(clips, maps, weighting or Weighting(), **_GENERATION, **more)

    def _find_layout(self) -> None:
        """How the family lays cells over frames, as it plans a clip."""
        with _overheard(self.captioner, "plan_clip") as calls:
            self._run([_noise(1, 0)], [_random_map(1, 0)], Weighting("+".join(sorted(self.marks))))
        layout, _ = calls[-1]
        self.grid, self.prefix, self.span = layout["grid"], layout["num_prefix_tokens"], layout["span"]

    def _first_logits(self, frames: Frames, cell: int) -> Tensor:
        """Of the first word where one cell alone is kept, (V,) float32; words that are ruled out are 0."""
        with _overheard(self.captioner, "generate_batch") as calls:
            self._run([frames], [self._peak(cell)], Weighting("prune", policy="top", keep_ratio=1e-9))
        _, generation = calls[-1]
        return generation.output.scores[0][0].float().nan_to_num(neginf=0.0)

    def _pixels_of(self, cell: int) -> tuple[slice, slice]:
        """Rows and columns of a frame that lie well within a cell."""
        assert self.grid is not None
        left, top, right, bottom = self.captioner.seen_box(_HEIGHT, _WIDTH)
        row, column = divmod(cell, self.grid[1])
        height, width = (bottom - top) / self.grid[0], (right - left) / self.grid[1]
        y, x = top + row * height, left + column * width
        return (
            slice(round((y + _MARGIN * height) * _HEIGHT), max(1, round((y + (1 - _MARGIN) * height) * _HEIGHT))),
            slice(round((x + _MARGIN * width) * _WIDTH), max(1, round((x + (1 - _MARGIN) * width) * _WIDTH))),
        )

    def _peak(self, cell: int) -> Tensor:
        maps = torch.full((self.span, _HEIGHT, _WIDTH), _LOW)
        rows, columns = self._pixels_of(cell)
        maps[:, rows, columns] = 0.0
        return maps

    def _moves(self, cells: list[int], frames: Frames) -> Tensor:
        """How far the logits move: (cell that is kept, cell whose pixels are inverted)."""
        moves = torch.empty(len(cells), len(cells))
        for row, kept in enumerate(cells):
            still = self._first_logits(frames, kept)
            for column, cell in enumerate(cells):
                moves[row, column] = (self._first_logits(self._inverted(frames, cell), kept) - still).norm()
        return moves

    def _inverted(self, frames: Frames, cell: int) -> Frames:
        pixels = frames.pixels.clone()
        rows, columns = self._pixels_of(cell)
        pixels[:, :, rows, columns] = 255 - pixels[:, :, rows, columns]
        return replace(frames, pixels=pixels)


@contextmanager
def _overheard(captioner: Any, method: str) -> Iterator[list[tuple[dict[str, Any], Any]]]:
    """The arguments and results of a captioner's method meanwhile."""
    calls: list[tuple[dict[str, Any], Any]] = []
    function = getattr(captioner, method)

    def listen(*args: Any, **kwargs: Any) -> Any:
        bound = signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        calls.append((bound.arguments, function(*args, **kwargs)))
        return calls[-1][1]

    setattr(captioner, method, listen)
    try:
        yield calls
    finally:
        delattr(captioner, method)


def _shares(moves: Tensor) -> Tensor:
    """Of what each cell's pixels do, so that those that do much everywhere count no more than others."""
    return moves / moves.sum(0)


def _noise(num_frames: int, seed: int) -> Frames:
    """The same random still, ``num_frames`` times."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (1, 3, _HEIGHT, _WIDTH), generator=generator, dtype=torch.uint8)
    return Frames(pixels.expand(num_frames, -1, -1, -1), torch.arange(num_frames))


def _random_map(num_frames: int, seed: int) -> Tensor:
    return 3 * torch.randn(num_frames, 24, 32, generator=torch.Generator().manual_seed(seed))


def _spread(total: int, most: int) -> list[int]:
    """Up to ``most`` of the numbers below ``total``, the first and the last among them."""
    count = min(total, most)
    return sorted({round(i * (total - 1) / max(count - 1, 1)) for i in range(count)})


def _state(model: Any) -> dict[str, Any]:
    """What a module must not be left with: hooks, attributes, another attention, another mode."""
    state = {}
    for name, module in model.named_modules():
        hooks = [len(getattr(module, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
        attention = getattr(getattr(module, "config", None), "_attn_implementation", None)
        state[name or "model"] = (module.training, hooks, sorted(vars(module)), attention)
    return state
