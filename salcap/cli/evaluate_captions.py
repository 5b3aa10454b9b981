"""``salcap evaluate --task caption``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from salcap.cli.console import number, print_columns, progress_bar, say, wrong_use
from salcap.strict_json import to_json

if TYPE_CHECKING:
    from salcap.evaluation.receipt import Receipt, RunSettings


def run(
    arms: Sequence[Any],
    dataset: Any,
    settings: Sequence[RunSettings],
    allow_missing: bool,
    num_workers: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Caption and score the set by each arm; one JSON line or one row of a table each, then the receipts.

    Until the receipts are written, records are kept beside them, in a folder "OUTPUT.partial" with a file for each row.
    """
    from salcap.datasets.captioned_videos import describe_missing
    from salcap.evaluation.evaluate import MissingItemsError, evaluate_set
    from salcap.evaluation.receipt import write_receipts

    kept_in = None if output is None else output.with_name(f"{output.name}.partial")
    rows: list[Receipt] = []
    try:
        for number, (arm, each) in enumerate(zip(arms, settings, strict=True), 1):
            label = f"{each.policy or each.mode} {each.keep_ratio:g}"
            with wrong_use(), progress_bar(len(dataset.present), label) as advance:
                if kept_in is not None:
                    kept_in.mkdir(exist_ok=True)
                row = evaluate_set(
                    arm,
                    dataset,
                    each,
                    allow_missing=allow_missing,
                    output=None if kept_in is None else kept_in / f"row-{number}.jsonl",
                    num_workers=num_workers,
                    progress=partial(_report, advance, len(dataset.present), label),
                )
            rows.append(row)
            if as_json:
                print(to_json(row.summary()), flush=True)
    except MissingItemsError as error:
        rest = "none is left to score" if allow_missing else "--allow-missing scores the rest, and marks the result"
        say(f"error: {error}. {rest}")
        raise typer.Exit(1) from error
    finally:
        if kept_in is not None:
            with suppress(OSError):  # it stays where it holds anything
                kept_in.rmdir()
    if output is not None and kept_in is not None:
        write_receipts(output, rows)
        shutil.rmtree(kept_in)
    if not as_json:
        _print_rows(rows)
    for row in rows[:1]:
        if row.missing:
            say(f"warning: {describe_missing(row.missing, dataset)}")
        if row.partial:
            say(f"partial: scores of {row.num_items} of {row.num_in_split} items are not those of the split")
    unscored = {name: why for row in rows for name, why in row.missing_scores.items()}
    for name, why in unscored.items():
        say(f"{name}: {why}")
    if unscored:
        raise typer.Exit(1)


def _report(advance: Any, wanted: int, label: str, record: dict[str, Any], done: int, total: int) -> None:
    if done == 1 and total < wanted:
        say(f"{label}: {wanted - total} of {wanted} captions are done, going on")
    advance(1, total)


def _print_rows(rows: Sequence[Receipt]) -> None:
    names = [name for name in rows[0].scores if any(row.scores[name] is not None for row in rows)]
    cells = [
        (
            *(row.saliency or "-", row.mode, row.policy or "-", f"{row.keep_ratio:g}", f"{row.visual_tokens:g}"),
            f"{row.num_items} of {row.num_in_split}" if row.partial else str(row.num_items),
            *(number(row.scores[name]) for name in names),
        )
        for row in rows
    ]
    print_columns(("saliency", "mode", "policy", "keep", "tokens", "items", *names), cells)
