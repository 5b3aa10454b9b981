"""``salcap demo``."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer

from salcap.cli.captioning import Device
from salcap.cli.console import app, wrong_use


@app.command()
def demo(
    videos: Annotated[
        list[str] | None, typer.Argument(help="Videos to pick from on the page: files, folders or glob patterns.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A captioner to choose beside salcap-mini: a hub id or folder.")
    ] = None,
    saliency: Annotated[
        list[str] | None,
        typer.Option(help="A backbone beside the registered ones: path/to/file.py:function."),
    ] = None,
    device: Device = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: the first free one from 7860.")] = None,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="Largest upload, in MB.")] = 200,
) -> None:
    """Open a page on this machine: captions, heat maps and kept patches of a video; Ctrl-C ends it."""
    from salcap.demo.server import serve
    from salcap.manifest import find_items

    with wrong_use(), ended_by_signals():
        picks = find_items(videos or [])
        for item in picks:
            if item.id != item.path:
                raise ValueError(f"the page takes whole videos, got {item.id}")
        with (
            serve(
                [item.path for item in picks],
                model or (),
                saliency or (),
                device=device,
                port=port,
                max_upload_mb=max_upload_mb,
            ) as address,
            suppress(KeyboardInterrupt),
        ):
            print(address, flush=True)
            threading.Event().wait()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt what is within as Ctrl-C does; one that is ignored, as by nohup, stays so."""
    numbers = [signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def interrupt(*_: object) -> None:
        for number in before:  # they come twice where a terminal closes or `timeout` ends: cleaning up goes on
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    try:
        for number in before:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
