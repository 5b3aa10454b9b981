"""``salcap inspect``."""

from __future__ import annotations

from typing import Annotated

import typer

from salcap.cli.captioning import Device, Dtype, Revision
from salcap.cli.console import AsJson, app, wrong_use
from salcap.strict_json import to_json


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="salcap-mini, a hub id or a local folder.")],
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """What saliency can do in a captioner, and self-tests on random frames; exit status 1 if one fails."""
    from salcap.inspection import inspect as look

    with wrong_use():
        found = look(model, revision=revision, device=device, dtype=dtype)
    if as_json:
        print(to_json(found.to_dict()))
    else:
        rows = found.to_dict()
        checks = rows.pop("checks")
        for name, value in rows.items():
            if isinstance(value, dict):
                value = ", ".join(f"{key} {part}" for key, part in value.items() if part is not None)
            elif isinstance(value, (list, tuple)):
                value = ", ".join(map(str, value))
            print(f"{name.replace('_', ' ')}: {'-' if value is None else value}")
        for name, check in checks.items():
            mark = {True: "passed", False: "FAILED", None: "nothing to test"}[check["passed"]]
            print(f"test, {name}: {mark} ({check['detail']})")
    if not found.passed:
        raise typer.Exit(1)
