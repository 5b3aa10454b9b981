"""``salcap list`` and ``salcap doctor``."""

from __future__ import annotations

import typer

from salcap.cli.console import AsJson, app
from salcap.strict_json import to_json


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List saliency backbones, captioner families, modes and policies."""
    from salcap.captioners import CAPTIONER_FAMILIES
    from salcap.config import MODES, POLICIES
    from salcap.doctor import bundled_weights
    from salcap.saliency import list_saliency, saliency_errors

    listing = {
        "saliency": list(list_saliency()),
        "broken_saliency": saliency_errors(),
        "captioner_families": sorted(CAPTIONER_FAMILIES),
        "bundled_models": bundled_weights(),
        "modes": list(MODES),
        "policies": list(POLICIES),
    }
    if as_json:
        print(to_json(listing))
        return
    for name, values in listing.items():
        if isinstance(values, dict):
            values = [f"{key} ({value})" for key, value in values.items()]
        if values:
            print(f"{name.replace('_', ' ')}: {', '.join(values)}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this installation; exit status 1 if something needs mending."""
    from salcap.doctor import examine

    report = examine()
    if as_json:
        print(to_json(report))
    else:
        for name, value in report.items():
            if isinstance(value, dict):
                value = ", ".join(f"{k} {v if v is not None else '-'}" for k, v in value.items())
            elif isinstance(value, list):
                value = "; ".join(value) or "none"
            print(f"{name}: {value if value is not None else 'not found'}")
    if report["problems"]:
        raise typer.Exit(1)
