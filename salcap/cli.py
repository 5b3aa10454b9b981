"""The ``salcap`` command. Results go to standard output, progress to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

app = typer.Typer(
    help="Video captioning with a saliency front-end.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_errors = Console(stderr=True)

Model = Annotated[str, typer.Option(help="salcap-mini, a hub id or a local folder.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
Saliency = Annotated[str | None, typer.Option(help="Backbone (see salcap list); default: the captioner's own.")]
Mode = Annotated[str | None, typer.Option(help="none, scale, bias, prune, or several joined by +.")]
NumBeams = Annotated[int | None, typer.Option(min=1, help="Beams; default: the captioner's own.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@app.command()
def caption(
    videos: Annotated[list[Path], typer.Argument(help="Video files, or folders of them.")],
    num_frames: Annotated[
        int | None,
        typer.Option(min=1, help="Frames to look at, spread evenly by time; default: 8, or the model's most."),
    ] = None,
    saliency: Saliency = None,
    mode: Mode = None,
    policy: Annotated[str | None, typer.Option(help="top, stratified, foveate, random or pool.")] = None,
    keep_ratio: Annotated[float | None, typer.Option(help="Share of the patches to keep, in (0, 1].")] = None,
    num_beams: NumBeams = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    start: Annotated[float | None, typer.Option(min=0, help="Start of the clip in seconds.")] = None,
    end: Annotated[float | None, typer.Option(min=0, help="End of the clip in seconds.")] = None,
    model: Model = "salcap-mini",
    revision: Revision = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    output: Annotated[Path | None, typer.Option(help="Write captions to a .jsonl, .vtt or .srt file.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing output file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Caption videos; exit status 1 if any of them failed."""
    from salcap.outputs import CaptionFile

    paths = _expand(videos)
    with _wrong_use(), CaptionFile.opened(output, len(paths), overwrite) as file:
        captioner = _load(model, revision, saliency, mode, policy, keep_ratio, device)
        generation = _given(num_beams=num_beams, max_new_tokens=max_new_tokens)
        failed = 0
        with _progress(len(paths), "captioning") as advance:
            for path in paths:
                result = captioner.caption_batch([path], num_frames, start, end, **generation)[0]
                file.write(result)
                advance(1)
                for warning in result.warnings:
                    _say(f"warning: {path}: {warning}")
                if result.error is not None:
                    failed += 1
                    _say(f"error: {result.error}")
                if as_json:
                    print(json.dumps(result.to_dict(), ensure_ascii=False), flush=True)
                elif result.text is not None:
                    print(result.text if len(paths) == 1 else f"{path}\t{result.text}", flush=True)
    if failed:
        _say(f"{failed} of {len(paths)} videos failed")
        raise typer.Exit(1)


@app.command()
def score(
    references: Annotated[Path, typer.Option(help="JSON: {id: [caption, ...]}, also .json.gz.")],
    candidates: Annotated[Path, typer.Option(help="JSON: {id: caption}, also .json.gz.")],
    as_json: AsJson = False,
) -> None:
    """Score captions against references: BLEU, METEOR, ROUGE-L, CIDEr; exit status 1 if one of them could not run."""
    from salcap.evaluation.captions import NOT_ASKED, load_candidates, load_references, score_report

    with _wrong_use():
        report = score_report(load_references(references), load_candidates(candidates))
    if as_json:
        print(json.dumps(report.scores))
    else:
        _print_table(("metric", "score"), [(name, _number(value)) for name, value in report.scores.items()])
    missing = {name: why for name, why in report.reasons.items() if why != NOT_ASKED}
    for name, why in missing.items():
        _say(f"{name}: {why}")
    if missing:
        raise typer.Exit(1)


@app.command()
def evaluate(
    dataset: Annotated[str, typer.Option(help="flickr8k-val, flickr8k-train or captioned-images.")],
    root: Annotated[Path, typer.Option(help="The data set's folder.")],
    model: Model = "salcap-mini",
    revision: Revision = None,
    saliency: Saliency = None,
    mode: Mode = None,
    policy: Annotated[str | None, typer.Option(help="One policy, or several separated by commas.")] = None,
    keep_ratio: Annotated[str | None, typer.Option(help="One share, or several separated by commas.")] = None,
    num_beams: Annotated[int, typer.Option(min=1)] = 3,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first items; said in the result.")] = None,
    device: Annotated[str | None, typer.Option()] = None,
    output: Annotated[Path | None, typer.Option(help="Also write results and captions to this JSON file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Caption a data set and score it; every combination of the policies and keep ratios given is one row."""
    from salcap.evaluation.evaluate import evaluate_images, load_dataset

    policies = policy.split(",") if policy else [None]
    if output is not None and not output.parent.is_dir():
        _fail(f"output folder {output.parent} does not exist")
    if output is not None and output.exists():
        _fail(f"output {output} exists; name another")
    with _wrong_use():
        ratios = [float(ratio) for ratio in keep_ratio.split(",")] if keep_ratio else [None]
        items = load_dataset(dataset, root)[:limit]
        captioner = _load(model, revision, saliency, mode, policies[0], ratios[0], device)
        arms = [captioner.with_weighting(policy=name, keep_ratio=ratio) for ratio in ratios for name in policies]
    rows = []
    for arm in arms:
        with _progress(len(items), f"{arm.weighting.policy} {arm.weighting.keep_ratio}") as advance:
            row = evaluate_images(
                arm, items, dataset=dataset, batch_size=batch_size, progress=advance, num_beams=num_beams
            )
        rows.append(row)
        if as_json:
            print(json.dumps(row.to_dict(captions=False)), flush=True)
        if output is not None:  # after every row: a stop later loses none of them
            output.write_text(json.dumps([row.to_dict() for row in rows], indent=1), encoding="utf-8")
    if not as_json:
        names = list(rows[0].scores)
        _print_table(
            ("saliency", "mode", "policy", "keep", "tokens", *names),
            [
                (
                    *(r.saliency or "-", r.mode, r.policy or "-", f"{r.keep_ratio:g}", f"{r.visual_tokens:g}"),
                    *(_number(r.scores[name]) for name in names),
                )
                for r in rows
            ],
        )
    missing = {name: why for row in rows for name, why in row.missing_scores.items()}
    for name, why in missing.items():
        _say(f"{name}: {why}")
    if missing:
        raise typer.Exit(1)


@app.command()
def train(config: Annotated[Path, typer.Argument(help="A YAML file such as configs/salcap-mini.yaml.")]) -> None:
    """Train a captioner; started again, a run goes on where it stopped."""
    from salcap.config import load_config
    from salcap.training.settings import CaptionerTraining

    with _wrong_use():
        settings = load_config(config, CaptionerTraining)
    from salcap.training.captioner import CaptionerTrainer

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with _wrong_use():
        trainer = CaptionerTrainer(settings, progress)
    print(trainer.run())


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
        print(json.dumps(listing))
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
        print(json.dumps(report))
    else:
        for name, value in report.items():
            if isinstance(value, dict):
                value = ", ".join(f"{k} {v if v is not None else '-'}" for k, v in value.items())
            elif isinstance(value, list):
                value = "; ".join(value) or "none"
            print(f"{name}: {value if value is not None else 'not found'}")
    if report["problems"]:
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the console script."""
    app()


def _load(
    model: str,
    revision: str | None,
    saliency: str | None,
    mode: str | None,
    policy: str | None,
    keep_ratio: float | None,
    device: str | None,
) -> Any:
    from salcap.pipeline import SaliencyCaptioner

    return SaliencyCaptioner.from_pretrained(
        model,
        revision=revision,
        saliency=saliency,
        mode=mode,
        policy=policy,
        keep_ratio=keep_ratio,
        device=device,
    )


def _expand(videos: list[Path]) -> list[Path]:
    """Folders become the files right inside them, by name; hidden files are left out."""
    paths: list[Path] = []
    for video in videos:
        if video.is_dir():
            inside = sorted(p for p in video.iterdir() if not p.is_dir() and not p.name.startswith("."))
            if not inside:
                _fail(f"folder {video} holds no files")
            paths += inside
        else:
            paths.append(video)
    return paths


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


@contextmanager
def _wrong_use() -> Iterator[None]:
    """Settings that cannot work end the command with their message and exit status 2."""
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    _say(f"salcap: {message}")
    raise typer.Exit(2)


def _say(message: str) -> None:
    """A line on standard error, as it is."""
    _errors.print(message, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _progress(total: int, label: str) -> Iterator[Any]:
    """A bar on standard error that vanishes when done, and nothing where that is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=_errors, transient=True, redirect_stdout=False, disable=not _errors.is_terminal
    ) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
