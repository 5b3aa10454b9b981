"""What trainings share: draws of batches, learning-rate schedule, averaged weights, running means, checkpoint, log."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from salcap.strict_json import to_json

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"


def draw_batch(
    seed: Sequence[int], num_items: int, batch_size: int, step: int, rank: int = 0, world: int = 1
) -> tuple[np.ndarray, np.random.Generator]:
    """A process's share of a step's batch, and the randomness of its step.

    Both hang on the step alone, so that a resumed run takes the path of one never stopped. An epoch visits every item;
    every process gets items of its own, also of an epoch's short last batch.

    Returns:
        Indices of items (n,) int64, and a generator.
    """
    epoch, at = divmod(step, math.ceil(num_items / batch_size))
    order = np.random.default_rng((*seed, epoch)).permutation(num_items)
    batch = order[at * batch_size : (at + 1) * batch_size]
    chosen = np.resize(batch, math.ceil(len(batch) / world) * world)[rank::world]
    return chosen, np.random.default_rng((*seed, epoch, at, rank))


def cosine_schedule(step: int, total: int, warmup: int, last: float = 0.05) -> float:
    """Share of the learning rate at a step: linear warm-up, then a cosine down to ``last``."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * done))


def write_checkpoint(folder: Path, settings: str, state: Mapping[str, Any]) -> None:
    """Save ``checkpoint.pt``, which is there whole or not at all, and with it how far the log has come.

    Args:
        settings: what the training cannot change on its way.
    """
    partial, log = folder / "checkpoint.partial", folder / LOG
    log_size = log.stat().st_size if log.exists() else 0
    torch.save({**state, "settings": settings, "log_size": log_size}, partial)
    os.replace(partial, folder / CHECKPOINT)


def read_checkpoint(folder: Path, settings: str, device: torch.device, cut_log: bool) -> dict[str, Any] | None:
    """The state of a training that was stopped, or None where it begins.

    Args:
        cut_log: take back what the log has of the steps after the checkpoint, which come again.

    Raises:
        ValueError: it was made with other settings.
    """
    path, log, state = folder / CHECKPOINT, folder / LOG, None
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        if state["settings"] != settings:
            raise ValueError(f"{path} was made with other settings; name another output or restore the config")
    if cut_log and log.exists():
        os.truncate(log, min(log.stat().st_size, state["log_size"] if state else 0))
    return state


def append_log(folder: Path, record: Mapping[str, Any]) -> str:
    """Add a record to ``log.jsonl``; returns its line."""
    line = to_json(record)
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    return line


def learnt_values(model: nn.Module) -> dict[str, Tensor]:
    """What a model learns, by name: its weights that are trained, and buffers that are saved (BatchNorm statistics)."""
    kept = model.state_dict().keys()
    learnt: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return learnt | {name: buffer for name, buffer in model.named_buffers() if name in kept}


def put_values(learnt: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Set what `learnt_values` names.

    Raises:
        ValueError: values of other names.
    """
    if values.keys() != learnt.keys():
        raise ValueError(f"weights of another model: {sorted(values.keys() ^ learnt.keys())[:3]}")
    with torch.no_grad():
        for name, value in values.items():
            learnt[name].copy_(value)


class WeightAverage:
    """Exponential average of what a model learns (`learnt_values`), better than the last state.

    The decay grows with the updates, (1 + n) / (10 + n) at most, so that a short training is not averaged with the
    weights that it began with.

    Attributes:
        values: name -> average; starts as the weights are.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self._num_updates = decay, 0
        self._learnt = learnt_values(model)
        self.values = {name: p.detach().clone() for name, p in self._learnt.items()}

    def current(self) -> dict[str, Tensor]:
        """The weights themselves, not their average."""
        return {name: p.detach() for name, p in self._learnt.items()}

    def update(self) -> None:
        """Take in the weights as a step left them."""
        self._num_updates += 1
        decay = min(self.decay, (1 + self._num_updates) / (10 + self._num_updates))
        averaged = [name for name, value in self.values.items() if value.is_floating_point()]
        weights = [self._learnt[name].detach() for name in averaged]
        torch._foreach_lerp_([self.values[name] for name in averaged], weights, 1 - decay)
        for name in self.values.keys() - set(averaged):  # counts
            self.values[name].copy_(self._learnt[name])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"values": self.values, "num_updates": self._num_updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's `state_dict`."""
        self.values, self._num_updates = state["values"], state["num_updates"]

    def put(self, values: Mapping[str, Tensor]) -> None:
        """Set the model's weights."""
        put_values(self._learnt, values)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has its averaged weights inside, its own again after."""
        own = {name: value.clone() for name, value in self.current().items()}
        self.put(self.values)
        try:
            yield
        finally:
            self.put(own)


class Means:
    """Means of what steps report, and their rate."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._steps, self._started = 0, time.monotonic()

    def add(self, values: Mapping[str, float]) -> None:
        """Take in what a step reports; steps may report different keys."""
        self._steps += 1
        for key, value in values.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
            self._counts[key] = self._counts.get(key, 0) + 1

    def means(self) -> dict[str, float]:
        """The mean of each key over the steps that reported it."""
        return {key: round(value / self._counts[key], 4) for key, value in self._sums.items()}

    def rate(self) -> float:
        """Steps a second."""
        return self._steps / (time.monotonic() - self._started)
