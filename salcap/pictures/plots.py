"""Plots of what commands wrote: the curves of a training, a benchmark's speeds."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from salcap.outputs import check_output, whole_file

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
        ValueError: a source of another kind or with something amiss, another suffix, an output that is there.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError("plots need matplotlib: pip install 'salcap[plots]'") from error
    file = source / "log.jsonl" if source.is_dir() else source
    check_output(output, SUFFIXES, 1, overwrite, [file])
    kind = output.suffix.lower()[1:]
    style: Any = {
        "svg.hashsalt": "salcap",
        "svg.fonttype": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context({**style, "font.size": 9}):
        figure = Figure(layout="constrained")
        _draw(figure, file)
        with whole_file(output) as partial:
            figure.savefig(partial, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {})
    return output


def _draw(figure: Any, file: Path) -> None:
    if not file.is_file():
        raise ValueError(f"no file {file}: nothing to plot")
    try:
        text = file.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # of a log; a kill may tear its last line
        found = [_parse(line) for line in whole.splitlines()] if file.suffix == ".jsonl" else _parse(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not the JSON of a training or benchmark: {error}") from error
    try:
        _draw_found(figure, found)
    except _Amiss as error:
        raise ValueError(f"{file}{error}") from error


class _Amiss(Exception):
    """What is wrong with a file, to be said after its name."""


def _parse(text: str) -> Any:
    return json.loads(text, parse_int=float)  # a whole number of any length, the longest as infinity


def _draw_found(figure: Any, found: Any) -> None:
    if isinstance(found, list) and len(found) == 1 and isinstance(found[0], dict) and "benchmark" in found[0]:
        (found,) = found  # a benchmark's one line
    if isinstance(found, list) and found and all(isinstance(record, dict) for record in found):
        _draw_training(figure, found)
    elif isinstance(found, dict) and found.get("benchmark") == "saliency":
        _draw_speeds(figure, found)
    elif isinstance(found, dict) and found.get("benchmark") == "captioning":
        _draw_stages(figure, found)
    else:
        raise _Amiss(" is not the JSON of a training or benchmark")


def _number(found: dict[str, Any], *keys: str, where: str = "") -> float:
    """The finite number that ``keys`` lead to."""
    value: Any = found
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, float) or not math.isfinite(value):
        raise _Amiss(f"{where}: expected a number for {'.'.join(keys)}, got {reprlib.repr(value)}")
    return value


# ---- trainings


def _draw_training(figure: Any, records: list[dict[str, Any]]) -> None:
    curves: dict[str, dict[float, float]] = {}
    borders: list[float] = []
    for began, at, values in _on_one_axis(records):
        borders += [began] if began not in borders else []
        for name, value in values.items():
            curves.setdefault(name, {})[at] = value
    if not curves:
        raise _Amiss(": its log has no figures to plot")
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
    for line, record in enumerate(records, 1):
        if record.get("stage") != stage:
            began, stage = at, record.get("stage")
        counter = next((name for name in ("step", "epoch") if name in record), None)
        at = at if counter is None else began + _number(record, counter, where=f", line {line}")
        scores = record.get("scores", {})
        if not isinstance(scores, dict):
            raise _Amiss(f", line {line}: expected scores by name, got {reprlib.repr(scores)}")
        values = {name: value for name, value in record.items() if name not in _STEPS} | scores
        yield began, at, {name: value for name, value in values.items() if isinstance(value, float)}


# ---- benchmarks


def _rows(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of a row -> the row."""
    rows = found.get("rows")
    if not isinstance(rows, list) or not rows:
        raise _Amiss(f": expected a list of rows, got {reprlib.repr(rows)}")
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            raise _Amiss(f": expected rows with a name, got {reprlib.repr(row)}")
    named = {row["name"]: row for row in rows}
    if len(named) < len(rows):
        raise _Amiss(f": expected rows of different names, got {', '.join(row['name'] for row in rows)}")
    return named


def _draw_speeds(figure: Any, found: dict[str, Any]) -> None:
    read = {
        name: _number(row, "frames_per_second", "frames_64", where=f", row {name}")
        for name, row in _rows(found).items()
    }
    names = sorted(read, key=read.__getitem__)
    speeds = [read[name] for name in names]
    if speeds[0] <= 0:
        raise _Amiss(f", row {names[0]}: expected frames_per_second above 0, got {speeds[0]:g}")
    size = found.get("frame_size")
    if not isinstance(size, list) or len(size) != 2:
        raise _Amiss(f": expected frame_size of height and width, got {reprlib.repr(size)}")
    height, width = (_number({"frame_size": side}, "frame_size") for side in size)
    axes = _bars(figure, names)
    axes.barh(names, speeds, color="#0077bb")
    axes.set_xscale("log")
    for number, speed in enumerate(speeds):
        axes.text(speed, number, f" {speed:,.1f}", va="center", fontsize=8)
    device = found.get("device", "cpu")
    where = f"{_number(found, 'threads'):g} threads" if device == "cpu" else device
    axes.set_xlabel(f"frames of {height:g}x{width:g} per second, {where}, median")


def _draw_stages(figure: Any, found: dict[str, Any]) -> None:
    rows = dict(reversed(_rows(found).items()))
    names = list(rows)
    axes = _bars(figure, names)
    ends = [0.0] * len(rows)
    for stage in _STAGES:
        ms = [_number(row, "ms", stage, "p50", where=f", row {name}") for name, row in rows.items()]
        axes.barh(names, ms, left=ends, label=stage)
        ends = [end + each for end, each in zip(ends, ms, strict=True)]
    for number, (name, row) in enumerate(rows.items()):
        ratio = _number(row, "ratio", where=f", row {name}")
        axes.text(ends[number], number, f" {ratio:.2f}", va="center", fontsize=8)
    axes.legend(ncols=len(_STAGES), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=8)
    for key in ("model", "device"):
        if not isinstance(found.get(key), str):
            raise _Amiss(f": expected a name for {key}, got {reprlib.repr(found.get(key))}")
    axes.set_xlabel(
        f"milliseconds by stage, medians, and the ratio to unmodified: {found['model']} on {found['device']}"
    )


def _bars(figure: Any, names: list[str]) -> Any:
    figure.set_size_inches(7, 0.8 + 0.32 * len(names))
    return figure.add_subplot()
