"""A call of ``generate``: what it may be asked, one call at a time, when its prefill is over, and its logits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from salcap.config import Weighting

F = TypeVar("F", bound=Callable[..., Any])

_SETTINGS = {field.name for field in fields(Weighting)}


class Turns:
    """A lock for the threads that share a model, on which each would meet the others' hooks; a copy has its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        return Turns, ()


def in_turns(method: F) -> F:
    """A method of an object with ``turns`` that threads call one after another."""

    @wraps(method)
    def alone(self: Any, *arguments: Any, **options: Any) -> Any:
        with self.turns:
            return method(self, *arguments, **options)

    return cast(F, alone)


def check_generation(generator: Any, generation: dict[str, Any]) -> None:
    """Refuse keyword arguments that ``generate`` would pass over, or answer with several captions a clip.

    Raises:
        ValueError: settings of the weighting, some of which are also names of inputs of an encoder; several captions a
            clip, wherever they were asked for.
    """
    if misplaced := sorted(_SETTINGS & generation.keys()):
        raise ValueError(f"{', '.join(misplaced)}: settings of the captioner, for from_pretrained or with_weighting")
    config = generation.get("generation_config") or getattr(generator, "generation_config", None)
    count = generation.get("num_return_sequences", getattr(config, "num_return_sequences", 1) or 1)
    if count != 1:
        raise ValueError(f"one caption a clip: num_return_sequences is {count}, not 1")


@contextmanager
def end_of_prefill(generator: nn.Module, now_ms: Callable[[], float]) -> Iterator[list[float]]:
    """A list that holds, in the end, when the generator's first forward was over."""
    ends: list[float] = []

    def note(*_: Any) -> None:
        if not ends:
            ends.append(now_ms())

    with generator.register_forward_hook(note):
        yield ends


class WatchedLogits:
    """Notes for each row of a batch (clips, or their beams) whether all logits of its next tokens were finite."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []

    def note(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """A forward hook that looks at the logits of the last token."""
        logits = getattr(output, "logits", None)
        if logits is not None:
            self._steps.append(logits[:, -1].isfinite().all(-1))

    def finite(self, num_clips: int, sequences: Tensor | None = None, ends: Sequence[int] = ()) -> list[bool]:
        """Return for each clip whether its logits were finite until its caption ended.

        Args:
            sequences: (num_clips, L) tokens, of which the last ones were generated; None counts all steps.
            ends: the tokens that end a caption. What follows one is padding while other clips go on.
        """
        if not self._steps:
            return [True] * num_clips
        finite = torch.stack([step.reshape(num_clips, -1).all(1).cpu() for step in self._steps], 1)
        if sequences is not None and finite.shape[1] <= sequences.shape[1]:
            ended = torch.isin(sequences[:, -finite.shape[1] :], sequences.new_tensor(ends)).long().cpu()
            finite |= ended.cumsum(1) - ended > 0
        return finite.all(1).tolist()


@contextmanager
def watch_logits(generator: nn.Module) -> Iterator[WatchedLogits]:
    """Watch the logits of every forward of a generator."""
    watched = WatchedLogits()
    with generator.register_forward_hook(watched.note):
        yield watched


def explain_not_finite(name: str, dtype: torch.dtype) -> str:
    """What is wrong with a model whose logits are not finite, and what to do."""
    precision = str(dtype).removeprefix("torch.")
    others = [other for other in ("bfloat16", "float32") if other != precision]
    advice = "check its weights" if precision in ("float32", "float64") else f"use dtype {' or '.join(others)}"
    return f"{name} made logits that are NaN or infinite in {precision}: {advice}"
