"""A comparison as one HTML file that needs nothing else: no script, no network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from salcap import __version__
from salcap.config import POLICIES
from salcap.evaluation.bootstrap import Difference
from salcap.evaluation.comparison import ComparedArm, Comparison
from salcap.evaluation.samples import Pictures, Sample
from salcap.evaluation.scatter import Point, key, scatter

BASELINES = ("none", "teacher", "random", "pool")
_SCORES = {f"bleu_{n}": f"BLEU-{n}" for n in (1, 2, 3, 4)} | {
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "spice": "SPICE",
}
_PLOTTED = ("cider", "bleu_4")


def write_report(
    comparison: Comparison,
    path: str | Path,
    samples: Sequence[Sample] = (),
    references: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write the file whole or not at all; an existing one is replaced.

    Args:
        samples: clips to show; those that are in no row are left out.
        references: id -> what people wrote of the samples.
    """
    title = escape(f"{comparison.model} on {comparison.dataset}")
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    body = [
        *(f"<h1>{title}</h1>", *_facts(comparison), *_plots(comparison.rows)),
        *(*_quality(comparison.rows), *_verdicts(comparison.rows), *_cost(comparison.rows)),
        *(*_faithfulness(comparison), *_samples(comparison.rows, samples, references or {})),
        f'<p class="note">salcap {escape(__version__)}</p>',
    ]
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>\n{style}</style>"
    )
    page = "\n".join(
        ["<!doctype html>", f'<html lang="en"><head>{head}</head><body><main>', *body, "</main></body></html>"]
    )
    partial = Path(path).with_suffix(".partial")
    partial.write_text(page + "\n", encoding="utf-8")
    os.replace(partial, path)


def _facts(comparison: Comparison) -> Iterable[str]:
    ran = any(row.arm.saliency == comparison.teacher for row in comparison.rows)
    facts = {
        "clips": f"{comparison.num_clips} of {comparison.dataset}",
        "model": comparison.model,
        "arms": f"{len(comparison.rows)}, in turns within one run",
        "ran on": f"{comparison.device} in {comparison.dtype}, threads: {comparison.threads}",
        "teacher": comparison.teacher if ran else f"{comparison.teacher}, which is in no arm",
        "intervals": f"95 %, by paired bootstrap over the clips, {comparison.draws} draws",
    }
    yield f"<dl>{''.join(f'<dt>{name}</dt><dd>{escape(fact)}</dd>' for name, fact in facts.items())}</dl>"
    lacking = {**comparison.missing, **comparison.missing_scores, **comparison.failures}
    if lacking:
        items = (f"<li><b>{escape(name)}</b>: {escape(why)}</li>" for name, why in lacking.items())
        yield f"<h2>Missing</h2><ul>{''.join(items)}</ul>"


def _plots(rows: Sequence[ComparedArm]) -> Iterable[str]:
    colours = {name: i for i, name in enumerate(dict.fromkeys([None, *(row.arm.saliency for row in rows)]))}
    marks = {way: i for i, way in enumerate(dict.fromkeys(_way(row) for row in rows))}
    yield "<h2>Quality against time</h2>"
    yield '<p class="note">Up and to the left is better.</p><div class="plots">'
    for score in _PLOTTED:
        points = [
            Point(row.ms["total"]["p50"], value, _label(row), marks[_way(row)], colours[row.arm.saliency])
            for row in rows
            if (value := row.scores[score]) is not None
        ]
        if points:
            described = "; ".join(f"{point.label}: {point.y:.4f}, {point.x:.1f} ms" for point in points)
            plot = scatter(points, "median ms a clip", _SCORES[score], f"{_SCORES[score]} against time: {described}")
            yield f"<figure>{plot}</figure>"
    yield "</div>"
    shapes = [key(mark) + escape(way) for way, mark in marks.items()]
    hues = [key(None, colour) + escape(name or "no map") for name, colour in colours.items()]
    for legend in (["how", *shapes], ["map", *hues]):
        yield f'<ul class="legend">{"".join(f"<li>{item}</li>" for item in legend)}</ul>'


def _way(row: ComparedArm) -> str:
    """What a mark stands for."""
    mode, policy = row.arm.mode, row.arm.policy
    return mode if policy is None else policy if mode == "prune" else f"{mode} {policy}"


def _label(row: ComparedArm) -> str:
    """A point's label: what its mark does not say; the whole name where a map is called like a policy."""
    if row.arm.saliency in POLICIES:
        return row.arm.name
    named = row.arm.saliency or row.arm.policy or row.arm.mode
    return named if row.arm.policy is None else f"{named} {row.arm.keep_ratio:g}"


def _quality(rows: Sequence[ComparedArm]) -> Iterable[str]:
    scores = [name for name in _SCORES if any(row.scores[name] is not None for row in rows)]
    baselines = [name for name in BASELINES if any("cider" in row.against.get(name, {}) for row in rows)]
    yield "<h2>Quality</h2>"
    if baselines:
        yield (
            '<p class="note">CIDEr differences with their 95 % interval, bold where it leaves out zero. The baselines'
            " random and pool have the same keep ratio, teacher the same settings.</p>"
        )
    heads = ["tokens", *(_SCORES[name] for name in scores), *(f"CIDEr − {name}" for name in baselines)]
    yield _table(
        heads,
        rows,
        lambda row: [
            _number(row.visual_tokens, "g"),
            *(_number(row.scores[name], ".4f") for name in scores),
            *(_difference(row.against.get(name, {}).get("cider")) for name in baselines),
        ],
    )


def _verdicts(rows: Sequence[ComparedArm]) -> Iterable[str]:
    baselines = [name for name in BASELINES if any(name in row.verdicts for row in rows)]
    if not baselines:
        return
    yield "<h2>Verdicts</h2>"
    yield '<p class="note">Scores that are better or worse than chance explains, over all that were computed.</p>'
    heads = [f"against {name}" for name in baselines]
    judged = [row for row in rows if row.verdicts]
    yield _table(
        heads, judged, lambda row: [f'<td class="words">{escape(row.verdicts.get(n, "–"))}</td>' for n in baselines]
    )


def _cost(rows: Sequence[ComparedArm]) -> Iterable[str]:
    stages = list(dict.fromkeys(stage for row in rows for stage in row.ms if stage != "total"))
    yield "<h2>Time and memory</h2>"
    yield (
        '<p class="note">Milliseconds a clip, medians; total also at the 95th percentile, without reading the video.'
        " Saved: of the time of none, the median over the clips. Peak: rise of memory within one batch.</p>"
    )
    heads = ["tokens", *(f"{stage} ms" for stage in stages), "total ms", "total p95", "saved", "peak MiB"]
    yield _table(
        heads,
        rows,
        lambda row: [
            _number(row.visual_tokens, "g"),
            *(_number(row.ms[stage]["p50"] if stage in row.ms else None, ".1f") for stage in stages),
            _number(row.ms["total"]["p50"], ".1f"),
            _number(row.ms["total"]["p95"], ".1f"),
            _number(row.time_saved, ".1%"),
            _number(row.peak_memory_mib, ".0f"),
        ],
    )


def _faithfulness(comparison: Comparison) -> Iterable[str]:
    if not comparison.faithfulness:
        return
    clips = next(iter(comparison.faithfulness.values())).num_clips
    yield "<h2>Deletion faithfulness</h2>"
    yield (
        f'<p class="note">Mean log-probability per token of the caption without saliency (greedy search, {clips}'
        " clips), when half of the patches is dropped by a backbone's map. Faithfulness: with the least salient half"
        " dropped, minus with the most salient half dropped; above 0 where the map points at what the caption says.</p>"
    )
    cells = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{_number(found.whole, ".4f")}{_number(found.least_dropped, ".4f")}'
        f"{_number(found.most_dropped, '.4f')}{_difference(found.difference)}</tr>"
        for name, found in comparison.faithfulness.items()
    )
    yield _framed(["backbone", "all kept", "least salient dropped", "most salient dropped", "faithfulness"], cells)


def _samples(
    rows: Sequence[ComparedArm], samples: Sequence[Sample], references: Mapping[str, Sequence[str]]
) -> Iterable[str]:
    shown = [sample for sample in samples if sample.key in rows[0].captions]
    if not shown:
        return
    yield "<h2>Samples</h2>"
    yield (
        '<p class="note">The first clips, as the captioner got them: dropped patches are dark, patches merged into'
        " coarse tokens are grey.</p>"
    )
    for number, sample in enumerate(shown):
        pictures, figures = Pictures(sample, f"clip{number}"), []
        for row in rows:
            frames = "".join(pictures.draw(row.arm))
            words = f"{escape(row.arm.name)}<q>{escape(row.captions[sample.key])}</q>"
            figures.append(f'<figure><div class="frames">{frames}</div><figcaption>{words}</figcaption></figure>')
        texts = "".join(f"<li>{escape(text)}</li>" for text in references.get(sample.key, ()))
        wrote = f'<p class="note">People wrote:</p><ul class="references">{texts}</ul>' if texts else ""
        yield f"<section><h3>{escape(sample.key)}</h3>{pictures.definitions()}{wrote}"
        yield f'<div class="arms">{"".join(figures)}</div></section>'


def _table(heads: Sequence[str], rows: Sequence[ComparedArm], cells: Callable[[ComparedArm], Iterable[str]]) -> str:
    lines = (f'<tr><th scope="row">{escape(row.arm.name)}</th>{"".join(cells(row))}</tr>' for row in rows)
    return _framed(["arm", *heads], "".join(lines))


def _framed(heads: Sequence[str], lines: str) -> str:
    columns = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _number(value: float | None, form: str) -> str:
    """A cell; the number as it is stands in the markup."""
    return "<td>–</td>" if value is None else f"<td>{_data(value, form)}</td>"


def _difference(found: Difference | None) -> str:
    if found is None:
        return "<td>–</td>"
    value = _data(found.value, "+.4f")
    value = f"<b>{value}</b>" if found.is_significant else value
    return f"<td>{value} <small>[{_data(found.low, '+.4f')}, {_data(found.high, '+.4f')}]</small></td>"


def _data(value: float, form: str) -> str:
    return f'<data value="{value!r}">{value:{form}}</data>'
