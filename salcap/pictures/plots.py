"""Plots of what commands wrote: the curves of a training, a benchmark's speeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIXES = (".png", ".svg")
_STEPS = ("stage", "step", "epoch", "steps_per_second")  # of a log's record; all else is drawn
_STAGES = ("saliency", "preprocess", "encode", "prefill", "decode", "other")
_COLUMNS = 3


def draw_plot(source: Path, output: Path, overwrite: bool = False) -> Path:
    """Draw a plot as .png or .svg; returns ``output``.

    Args:
        source: a folder that ``salcap distill`` or ``salcap train`` wrote, or its log.jsonl: each loss, gain and
            score over the steps, stages one after another. A file with the JSON line of ``salcap benchmark saliency``
            or ``captioning``: frames per second, or milliseconds by stage.

    Raises:
        ImportError: no matplotlib (extra ``plots``).
        ValueError: a source of another kind, another suffix, an output that is there.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'salcap[plots]'") from error
    if output.suffix not in SUFFIXES:
        raise ValueError(f"output must end with {' or '.join(SUFFIXES)}, got {output}")
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists; give another output or --overwrite")
    style: Any = {
        "svg.hashsalt": "salcap",
        "svg.fonttype": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context({**style, "font.size": 9}):
        figure = Figure(layout="constrained")
        _draw(figure, source)
        dated = {"Date": None} if output.suffix == ".svg" else {}
        figure.savefig(output, dpi=150, metadata=dated)
    return output


def _draw(figure: Any, source: Path) -> None:
    file = source / "log.jsonl" if source.is_dir() else source
    if not file.is_file():
        raise ValueError(f"no file {file}: nothing to plot")
    text = file.read_text(encoding="utf-8")
    try:
        whole = text[: text.rfind("\n") + 1]  # of a log; a kill may tear its last line
        found = [json.loads(line) for line in whole.splitlines()] if file.suffix == ".jsonl" else json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not the JSON of a training or benchmark: {error}") from error
    if isinstance(found, list) and found and all(isinstance(record, dict) for record in found):
        _draw_training(figure, found, source)
    elif isinstance(found, dict) and found.get("benchmark") == "saliency":
        _draw_speeds(figure, found)
    elif isinstance(found, dict) and found.get("benchmark") == "captioning":
        _draw_stages(figure, found)
    else:
        raise ValueError(f"{file} is not the JSON of a training or benchmark")


# ---- trainings


def _draw_training(figure: Any, records: list[dict[str, Any]], source: Path) -> None:
    curves: dict[str, dict[float, float]] = {}
    borders: list[float] = []
    for began, at, values in _on_one_axis(records):
        borders += [began] if began not in borders else []
        for name, value in values.items():
            curves.setdefault(name, {})[at] = value
    if not curves:
        raise ValueError(f"{source}: its log has no figures to plot")
    last = max(max(curve) for curve in curves.values())
    rows = math.ceil(len(curves) / _COLUMNS)
    columns = min(len(curves), _COLUMNS)
    figure.set_size_inches(3.2 * columns, 2.2 * rows)
    for number, (name, curve) in enumerate(curves.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.plot(list(curve), list(curve.values()), "." if len(curve) < 4 else "-", color="#0077bb")
        axes.set_xlim(0, 1.03 * last)
        for border in borders[1:]:
            axes.axvline(border, color="#c4c8ce", linewidth=0.8, zorder=0)
        axes.set_title(name)
        axes.set_xlabel("step" if "step" in records[0] else "epoch")


def _on_one_axis(records: list[dict[str, Any]]) -> Iterator[tuple[float, float, dict[str, float]]]:
    """Of each record where its stage began, its own place, and its figures, those of ``scores`` too.

    The steps of a stage go on where those of the stage before ended.
    """
    began = at = 0.0
    stage = records[0].get("stage")
    for record in records:
        if record.get("stage") != stage:
            began, stage = at, record.get("stage")
        at = began + record.get("step", record.get("epoch", at - began))
        values = {name: value for name, value in record.items() if name not in _STEPS} | record.get("scores", {})
        yield began, at, {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


# ---- benchmarks


def _draw_speeds(figure: Any, found: dict[str, Any]) -> None:
    rows = sorted(found["rows"], key=lambda row: row["frames_per_second"]["frames_64"])
    names = [row["name"] for row in rows]
    speeds = [row["frames_per_second"]["frames_64"] for row in rows]
    axes = _bars(figure, names)
    axes.barh(names, speeds, color="#0077bb")
    axes.set_xscale("log")
    for number, speed in enumerate(speeds):
        axes.text(speed, number, f" {speed:,.1f}", va="center", fontsize=8)
    height, width = found["frame_size"]
    axes.set_xlabel(f"frames of {height}x{width} per second, {found['threads']} threads, median")


def _draw_stages(figure: Any, found: dict[str, Any]) -> None:
    rows = found["rows"][::-1]
    names = [row["name"] for row in rows]
    axes = _bars(figure, names)
    ends = [0.0] * len(rows)
    for stage in _STAGES:
        ms = [row["ms"][stage]["p50"] for row in rows]
        axes.barh(names, ms, left=ends, label=stage)
        ends = [end + each for end, each in zip(ends, ms, strict=True)]
    for number, row in enumerate(rows):
        axes.text(ends[number], number, f" {row['ratio']:.2f}", va="center", fontsize=8)
    axes.legend(ncols=len(_STAGES), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=8)
    axes.set_xlabel(
        f"milliseconds by stage, medians, and the ratio to unmodified: {found['model']} on {found['device']}"
    )


def _bars(figure: Any, names: list[str]) -> Any:
    figure.set_size_inches(7, 0.8 + 0.32 * len(names))
    return figure.add_subplot()
