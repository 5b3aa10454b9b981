"""``salcap verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from salcap.cli.console import AsJson, app, wrong_use
from salcap.strict_json import to_json


@app.command()
def verify(
    receipt: Annotated[Path, typer.Argument(help="What salcap evaluate --output wrote.")],
    root: Annotated[Path, typer.Option(help="The data set's folder; its annotations are enough.")],
    as_json: AsJson = False,
) -> None:
    """Score a receipt's captions again and report every difference; exit status 1 if there is one."""
    from salcap.datasets.registry import load_captioned_set
    from salcap.evaluation.receipt import read_receipts, verify_receipt

    differs = False
    with wrong_use():
        receipts = read_receipts(receipt)
        for number, each in enumerate(receipts, 1):
            dataset = load_captioned_set(each.dataset, root, each.split, untrimmed=each.untrimmed)
            differences = verify_receipt(each, dataset)
            differs = differs or bool(differences)
            if as_json:
                print(to_json({"row": number, "confirmed": not differences, "differences": differences}), flush=True)
                continue
            row = f"row {number}, " if len(receipts) > 1 else ""
            what = f"{row}{each.dataset}, split {each.split}, {each.num_items} of {each.num_in_split} items"
            for difference in differences:
                print(f"{what}: {difference}", flush=True)
            if not differences:
                scores = sum(score is not None for score in each.scores.values())
                print(f"{what}: confirmed, {scores} scores{' of a partial set' if each.partial else ''}", flush=True)
    if differs:
        raise typer.Exit(1)
