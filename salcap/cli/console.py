"""What all commands share: their messages, progress, tables, and the exit status of wrong use."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

app = typer.Typer(
    help="Video captioning with a saliency front-end.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_errors = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@contextmanager
def wrong_use() -> Iterator[None]:
    """Settings that cannot work end the command with their message and exit status 2."""
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """End the command with a message and exit status 2."""
    say(f"salcap: {message}")
    raise typer.Exit(2)


def say(message: str) -> None:
    """A line on standard error, as it is."""
    _errors.print(message, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(total: int, label: str) -> Iterator[Any]:
    """A bar on standard error that vanishes when done; where that is no terminal a line after 10 s, then one a minute.

    Yields ``advance(count, total=None)``.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    started = last = burst = time.monotonic()
    said = started - 50
    drawn = _errors.is_terminal and _errors.file.isatty()  # FORCE_COLOR and the like make the first true of any file
    with Progress(*columns, console=_errors, transient=True, redirect_stdout=False, disable=not drawn) as bar:
        task = bar.add_task(label, total=total)

        def advance(count: float, total: float | None = None) -> None:
            nonlocal said, last, burst
            state, now = bar.tasks[0], time.monotonic()
            completed, seconds = state.completed, last - started
            bar.update(task, advance=count, total=total)
            last = now
            if now - burst < 1:  # the calls of a batch come together, and amid them the rate would be off
                return
            burst = now
            if not drawn and now - said >= 60 and completed and state.total:
                said, rate = now, completed / seconds
                left = (state.total - completed) / rate
                say(f"{label}: {completed:.0f} of {state.total:.0f}, {rate:.2f} a second, {left / 60:.0f} min left")

        yield advance


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f}/s")


def number(value: float | None) -> str:
    """A score for a table, - for one that is not there."""
    return "-" if value is None else f"{value:.4f}"


def print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A table of rich's on standard output."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def print_columns(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Columns as wide as they need: no table of rich's, which squeezes wide ones into 80 columns."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for cells in (headings, *rows):
        first, *others = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        print("  ".join((first.strip().ljust(widths[0]), *others)))


def given(**values: Any) -> dict[str, Any]:
    """The options that were given: those that are not None."""
    return {name: value for name, value in values.items() if value is not None}
