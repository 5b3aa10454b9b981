"""``salcap export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from salcap.cli.console import AsJson, app, fail, given, say, wrong_use
from salcap.strict_json import to_json


@app.command()
def export(
    output: Annotated[Path, typer.Option(help="The file: .onnx, .xml (openvino; .bin beside it) or .pt2 (torch).")],
    kind: Annotated[str, typer.Option("--format", help="onnx, openvino or torch.")] = "onnx",
    saliency: Annotated[str, typer.Option(help="uva_net or uva_net_32.")] = "uva_net",
    checkpoint: Annotated[
        str | None, typer.Option(help="Folder of trained weights, or a Hub id; default: those of salcap.")
    ] = None,
    clips: Annotated[
        bool, typer.Option("--clips", help="The network of frames that follow each other; it takes their times too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a student as a file that runs without salcap; exit status 1 if its maps are not those of the student."""
    from salcap.saliency import create_saliency
    from salcap.saliency.export import TOLERANCE, ParityError, export_student

    try:
        with wrong_use():
            model = create_saliency(saliency, **given(checkpoint=checkpoint))
            difference = export_student(model, output, kind, clips)
    except TypeError as error:
        fail(str(error))
    except ParityError as error:
        say(f"salcap: {error}")
        raise typer.Exit(1) from error
    files = [output, *([output.with_suffix(".bin")] if kind == "openvino" else [])]
    size = sum(file.stat().st_size for file in files)
    if as_json:
        record = {"output": str(output), "format": kind, "clips": clips, "bytes": size, "difference": difference}
        print(to_json(record))
        return
    print(f"{output}: {size:,} bytes, {kind}")
    print(f"parity: log-densities differ by {difference:.2e} at most, allowed {TOLERANCE:g}")
