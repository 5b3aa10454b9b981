"""The options that name a captioner and its saliency, and the captioner that they name."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from salcap.cli.console import wrong_use


def _here(device: str | None) -> str | None:
    if device is not None:
        from salcap.devices import check_device

        with wrong_use():
            check_device(device)
    return device


Device = Annotated[str | None, typer.Option(callback=_here, help="cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or auto; default: float32.")]
Model = Annotated[str, typer.Option(help="salcap-mini, a hub id or a local folder.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
Saliency = Annotated[str | None, typer.Option(help="Backbone (see salcap list); default: the captioner's own.")]
Mode = Annotated[str | None, typer.Option(help="none, scale, bias, prune, zoom, or several joined by +.")]
MaxVisualTokens = Annotated[
    int | None, typer.Option(min=1, help="Most visual tokens of a clip, shared by its frames as they are looked at.")
]
MinKeep = Annotated[int | None, typer.Option(min=1, help="Fewest patches that a frame keeps.")]
Zoom = Annotated[float | None, typer.Option(help="How much closer the crop of mode zoom is; default: 2.")]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Processes that read; default: half of the cores, for one video or photographs 0."),
]
NumBeams = Annotated[int | None, typer.Option(min=1, help="Beams; default: the captioner's own.")]


def load_captioner(
    model: str,
    revision: str | None,
    saliency: str | None,
    mode: str | None,
    policy: str | None,
    keep_ratio: float | None,
    max_visual_tokens: int | None,
    min_keep: int | None,
    zoom: float | None,
    device: str | None,
    dtype: str | None = None,
    seed: int | None = None,
) -> Any:
    """The captioner that a command's options name."""
    from salcap.saliency_captioner import SaliencyCaptioner

    return SaliencyCaptioner.from_pretrained(
        model,
        revision=revision,
        saliency=saliency,
        mode=mode,
        policy=policy,
        keep_ratio=keep_ratio,
        max_visual_tokens=max_visual_tokens,
        min_keep=min_keep,
        zoom=zoom,
        device=device,
        dtype=dtype,
        seed=seed,
    )
