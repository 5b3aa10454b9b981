"""The page's own HTML: what is known of a video, a card for each column, the patches it keeps, overlays, messages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from salcap.demo.columns import Column
from salcap.evaluation.samples import Pictures, Sample, data_uri
from salcap.frames import Frames
from salcap.outputs import clock
from salcap.video import VideoInfo

# stage -> its part of the timings; reading is done once, for all columns
STAGES = {
    "saliency": ("saliency_ms", "zoom_ms"),
    "vision": ("preprocess_ms", "encode_ms"),
    "language": ("prefill_ms", "decode_ms"),
}
_SWATCHES = {"kept": "kept", "merged": "merged into coarse tokens", "dropped": "dropped, or not seen"}


def message(words: str) -> str:
    """Said to screen readers once it is there."""
    return f'<p class="message" role="status">{escape(words)}</p>'


def alarm(words: str) -> str:
    """What went wrong."""
    return f'<p class="alarm" role="alert"><strong>That did not work.</strong> {escape(words)}</p>'


def facts(info: VideoInfo, first: Frames, aspect: float) -> str:
    """A video's first picture with what is known of it."""
    name = escape(Path(info.path).name)
    rate = "" if info.fps is None else f", {info.fps:.4g} frames a second"
    words = f"{info.duration_seconds:.2f} s, {info.width} x {info.height}{rate}, {escape(info.codec)}"
    notes = "".join(f'<br><span class="note">{escape(warning)}</span>' for warning in info.warnings)
    picture = f'<img src="{data_uri(first.pixels[0])}" alt="Frame of {name}" style="aspect-ratio: {aspect:.4f}">'
    return f'<figure class="facts">{picture}<figcaption><strong>{name}</strong><br>{words}{notes}</figcaption></figure>'


def cards(columns: Sequence[Column], waiting: Sequence[str] = ()) -> str:
    """Captions side by side.

    Args:
        waiting: roles of columns that are still to come.
    """
    most = max((_milliseconds(column) for column in columns), default=0.0)
    whole = next((_milliseconds(c) for c in columns if c.role == "unmodified" and c.caption.error is None), None)
    done = "".join(_card(column, most, whole) for column in columns)
    rest = "".join(
        f'<article class="card"><h3>{role.title()}</h3><p class="note">waiting</p></article>' for role in waiting
    )
    return f'<div class="columns">{done}{rest}</div>'


def _card(column: Column, most: float, whole: float | None) -> str:
    caption = column.caption
    head = f'<h3>{column.role.title()}</h3><p class="note">{escape(column.arm.name)}</p>'
    if caption.error is not None:
        return f'<article class="card">{head}<p class="alarm">{escape(caption.error)}</p></article>'
    total = _milliseconds(column)
    against = "" if whole is None or column.role == "unmodified" else f", {total / whole:.2f} of unmodified"
    parts = {stage: sum(caption.timings.get(name, 0.0) for name in names) for stage, names in STAGES.items()}
    bar = "".join(f'<span class="{stage}" style="width: {100 * ms / most:.2f}%"></span>' for stage, ms in parts.items())
    rows = "".join(
        f'<dt><span class="key {stage}"></span>{stage}</dt><dd>{ms:,.0f} ms</dd>' for stage, ms in parts.items() if ms
    )
    score = "" if caption.score is None else f"<dt>log-probability a token</dt><dd>{caption.score:.2f}</dd>"
    notes = "".join(f'<p class="note">{escape(warning)}</p>' for warning in caption.warnings)
    span = f"{_time(caption.start_seconds or 0.0)} to {_time(caption.end_seconds or 0.0)}"
    return (
        f'<article class="card">{head}<p class="caption">{escape(caption.text or "(no words)")}</p>'
        f'<p class="note"><time>{span}</time></p><p class="total">{total:,.0f} ms{against}</p>'
        f'<div class="bar" aria-hidden="true">{bar}</div>'
        f"<dl>{rows}<dt>visual tokens</dt><dd>{caption.visual_tokens:,}</dd>{score}</dl>{notes}</article>"
    )


def patches(columns: Sequence[Column]) -> str:
    """Each frame of each column: dropped patches dark, merged ones grey, with their numbers."""
    shown = {column.arm: column.shown for column in columns if column.shown is not None}
    if not shown:
        return ""
    pictures = Pictures(Sample(columns[0].caption.path or "video", shown), "clip")
    groups = "".join(_frames(column, pictures) for column in columns if column.shown is not None)
    legend = "".join(f'<li><span class="swatch {name}"></span>{words}</li>' for name, words in _SWATCHES.items())
    return f'{pictures.definitions()}<ul class="legend">{legend}</ul><div class="columns">{groups}</div>'


def _frames(column: Column, pictures: Pictures) -> str:
    assert column.shown is not None
    times, kept = column.shown.frames.pts_seconds.tolist(), column.shown.patches
    figures = ""
    for number, (seconds, drawing) in enumerate(zip(times, pictures.draw(column.arm), strict=True)):
        count = "all" if kept is None else f"{int(kept.kept[number].sum())} of {kept.kept.shape[1]}"
        figures += f"<figure>{drawing}<figcaption>{_time(seconds)}<br>{count} kept</figcaption></figure>"
    return f'<section class="card"><h3>{column.role.title()}</h3><div class="frames">{figures}</div></section>'


def overlay(role: str, backbone: str, path: Path, words: str) -> str:
    """A heat map over the video, which the server serves out of its own folder."""
    name = f"{role.title()}: {escape(backbone)}"
    return (
        f'<figure class="card"><figcaption><strong>{name}</strong><br><span class="note">{escape(words)}</span>'
        f'</figcaption><video controls muted loop playsinline preload="auto" src="{_address(path)}"'
        f' aria-label="Heat map over the video, {name}"></video></figure>'
    )


def overlay_failed(role: str, backbone: str, words: str) -> str:
    """In an overlay's place, why there is none."""
    name = f"{role.title()}: {escape(backbone)}"
    return f'<div class="card"><strong>{name}</strong><p class="alarm">{escape(words)}</p></div>'


def download(path: Path | None) -> str:
    """A link to a file of captions; None: there are none yet."""
    if path is None:
        return '<p class="note">There is a file once there are captions.</p>'
    name = escape(path.name)
    return f'<p><a class="download" href="{_address(path)}" download="{name}">Download {name}</a></p>'


def _address(path: Path) -> str:
    """Where the server has a file of its own folder."""
    return f"gradio_api/file={quote(str(path))}"


def _milliseconds(column: Column) -> float:
    timings = column.caption.timings
    return sum(timings.get(name, 0.0) for names in STAGES.values() for name in names)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 60 else clock(seconds, ".")[:-4]
