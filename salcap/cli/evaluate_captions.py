"""``salcap evaluate --task caption``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from salcap.cli.console import number, print_columns, progress_bar, say, wrong_use

if TYPE_CHECKING:
    from salcap.evaluation.receipt import Receipt, RunSettings


def run(
    arms: Sequence[Any],
    dataset: Any,
    settings: Sequence[RunSettings],
    allow_missing: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Caption and score the set by each arm; one JSON line or one row of a table each, then the receipts.

    Until the receipts are written, captions are kept beside them, in "OUTPUT.partial.jsonl".
    """
    from salcap.datasets.captioned_videos import describe_missing
    from salcap.evaluation.caption_log import CaptionLog
    from salcap.evaluation.evaluate import MissingItemsError, evaluate_set
    from salcap.evaluation.receipt import write_receipts

    kept_in = None if output is None else output.with_name(f"{output.name}.partial.jsonl")
    rows: list[Receipt] = []
    with wrong_use(), CaptionLog.opened(kept_in, [vars(each) for each in settings]) as log:
        if kept := sum(map(len, log.done)):
            say(f"going on from {kept_in}: {kept} captions are done")
        for index, (arm, each) in enumerate(zip(arms, settings, strict=True)):
            with progress_bar(len(dataset.items), f"{each.policy or each.mode} {each.keep_ratio:g}") as advance:
                try:
                    row = evaluate_set(
                        arm,
                        dataset,
                        each,
                        allow_missing=allow_missing,
                        done=log.done[index],
                        keep=partial(log.add, index),
                        progress=advance,
                    )
                except MissingItemsError as error:
                    say(f"error: {error}. --allow-missing scores the rest, and marks the result")
                    raise typer.Exit(1) from error
            rows.append(row)
            if as_json:
                print(json.dumps(row.summary()), flush=True)
    if output is not None and kept_in is not None:
        write_receipts(output, rows)
        kept_in.unlink()
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
