"""Caption metrics: references and candidates in, BLEU, METEOR, ROUGE-L, CIDEr and SPICE out (by pycocoevalcap)."""

from __future__ import annotations

import difflib
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor import meteor as meteor_room
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.spice import spice as spice_room
from pycocoevalcap.tokenizer import ptbtokenizer as ptb_room

from salcap.evaluation import ptb
from salcap.evaluation.caption_files import (  # noqa: F401  # also found here
    caption_texts,
    load_candidates,
    load_captions,
    load_references,
)
from salcap.evaluation.java import MetricError, meteor, ptb_tokenize, spice

METRICS = ("bleu", "meteor", "rouge_l", "cider", "spice")
DEFAULT_METRICS = ("bleu", "meteor", "rouge_l", "cider")
SCORES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider", "spice")
NOT_ASKED = "not asked for"  # the reason of a score whose metric was left out
TOKENIZERS = {
    "java": "PTBTokenizer of Stanford CoreNLP 3.4.1, lower case, punctuation removed",
    "python": "salcap's Python rules after PTBTokenizer of Stanford CoreNLP 3.4.1, lower case, punctuation removed",
}

PTB_JAR = Path(ptb_room.__file__).parent / ptb_room.STANFORD_CORENLP_3_4_1_JAR
_METEOR_JAR = Path(meteor_room.__file__).parent / meteor_room.METEOR_JAR
_SPICE_JAR = Path(spice_room.__file__).parent / spice_room.SPICE_JAR
PUNCTUATION = frozenset(ptb_room.PUNCTUATIONS)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreReport:
    """Scores of a set of captions, and what stands behind them.

    Attributes:
        scores: every name of `SCORES` -> the score of the whole set (0 to 1; CIDEr 0 to 10), None where there is none.
        reasons: for each None, why.
        per_caption: score name -> id -> that caption's own score.
        tokenizer: what split the captions, of `TOKENIZERS`' values; None where nothing could.
        bleu_counts: id -> (10,) what BLEU of a set is made of, by `bleu_of_counts`; empty where it was not scored.
    """

    scores: dict[str, float | None]
    reasons: dict[str, str]
    per_caption: dict[str, dict[str, float]]
    tokenizer: str | None
    bleu_counts: dict[str, np.ndarray] = field(default_factory=dict, repr=False)


def bleu_of_counts(counts: np.ndarray) -> np.ndarray:
    """BLEU-1 to 4 (D, 4) of D sets, from the sums or means (D, 10) of their captions' `ScoreReport.bleu_counts`."""
    correct, guessed, length, reference_length = np.split(counts, (4, 8, 9), axis=1)
    precisions = np.cumprod((correct + 1e-15) / (guessed + 1e-9), axis=1)
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return np.asarray(precisions ** (1 / np.arange(1, 5)) * penalty)


def score_captions(
    references: Mapping[str, Sequence[str]],
    candidates: Mapping[str, str],
    metrics: Iterable[str] = DEFAULT_METRICS,
    *,
    tokenizer: str = "auto",
    timeout_seconds: float = 600.0,
) -> dict[str, float | None]:
    """Score captions as the COCO caption evaluation does, tokenised once for all metrics.

    Args:
        references: id -> what people wrote (the ground truth), at least one caption each.
        candidates: id -> the caption to score; the same ids.
        metrics: of `METRICS`; METEOR and SPICE need Java, SPICE also models that do not come with pycocoevalcap.
        tokenizer: what splits the captions for BLEU, ROUGE-L and CIDEr: "java", "python" (needs no Java; equal on all
            but about one caption in 100,000), or "auto": "java" where there is one on PATH, else "python". METEOR and
            SPICE always get Java's tokens.
        timeout_seconds: limit for each Java program (tokenizer, METEOR, SPICE).

    Returns:
        Every name of `SCORES`. None, never 0, where a metric was not asked for or could not run; the log says why,
        and so does `score_report`.

    Raises:
        ValueError: no captions, ids that differ, an id without reference, a caption that is no string, or an unknown
            metric or tokenizer. An empty caption is allowed.
    """
    report = score_report(references, candidates, metrics, tokenizer=tokenizer, timeout_seconds=timeout_seconds)
    return report.scores


def score_report(
    references: Mapping[str, Sequence[str]],
    candidates: Mapping[str, str],
    metrics: Iterable[str] = DEFAULT_METRICS,
    *,
    tokenizer: str = "auto",
    timeout_seconds: float = 600.0,
) -> ScoreReport:
    """`score_captions` with the reason for every score that is missing, and with each caption's own scores."""
    (report,) = score_reports(references, [candidates], metrics, tokenizer=tokenizer, timeout_seconds=timeout_seconds)
    return report


def score_reports(
    references: Mapping[str, Sequence[str]],
    candidates: Sequence[Mapping[str, str]],
    metrics: Iterable[str] = DEFAULT_METRICS,
    *,
    tokenizer: str = "auto",
    timeout_seconds: float = 600.0,
) -> list[ScoreReport]:
    """`score_report` of several sets of captions of the same clips, for which each Java program is started once.

    ``timeout_seconds`` is for one set: a program that scores several has as many times that.
    """
    asked = _check_metrics(metrics)
    chosen = _choose_tokenizer(tokenizer)
    truths, texts = _check_captions(references, candidates)
    timeout_seconds *= len(texts)
    tokenizer_of = {metric: "java" if metric in _JAVA_METRICS else chosen for metric in asked}
    split = {kind: _tokenize(truths, texts, kind, timeout_seconds) for kind in dict.fromkeys(tokenizer_of.values())}

    def run(metric: str) -> list[_Results | MetricError]:
        tokens = split[tokenizer_of[metric]]
        return [tokens] * len(texts) if isinstance(tokens, MetricError) else _run(metric, *tokens, timeout_seconds)

    with ThreadPoolExecutor(1) as beside:  # Java's metrics stay in this thread, where an interrupt ends them at once
        python = {metric: beside.submit(run, metric) for metric in asked if metric not in _JAVA_METRICS}
        outcomes = {metric: run(metric) for metric in asked if metric in _JAVA_METRICS}
        outcomes |= {metric: future.result() for metric, future in python.items()}
    used = [TOKENIZERS[kind] for kind in (chosen, "java") if isinstance(split.get(kind), tuple)]
    reports = []
    for number in range(len(texts)):
        tokens = split.get(chosen)
        counts = _bleu_counts(tokens[0], tokens[1][number]) if "bleu" in asked and isinstance(tokens, tuple) else {}
        found = {metric: outcome[number] for metric, outcome in outcomes.items()}
        reports.append(_report(list(truths), found, used[0] if used else None, counts))
    return reports


def _report(
    keys: Sequence[str], outcomes: Mapping[str, _Results | MetricError], tokenizer: str | None, counts: _Counts
) -> ScoreReport:
    """The metrics' results by the names of their scores, and by caption; warns of those that could not run."""
    reasons = {name: NOT_ASKED for metric in METRICS if metric not in outcomes for name in _NAMES[metric]}
    scores: dict[str, float | None] = dict.fromkeys(SCORES)
    per_caption: dict[str, dict[str, float]] = {}
    for metric, outcome in outcomes.items():
        if isinstance(outcome, MetricError):
            reasons |= dict.fromkeys(_NAMES[metric], str(outcome))
            continue
        for name, (whole, each) in zip(_NAMES[metric], outcome, strict=True):
            scores[name] = float(whole)
            per_caption[name] = {key: float(value) for key, value in zip(keys, each, strict=True)}
    missing = [name for metric in outcomes for name in _NAMES[metric] if name in reasons]
    for reason in dict.fromkeys(reasons[name] for name in missing):
        names = ", ".join(name for name in missing if reasons[name] == reason)
        logger.warning("not scored: %s: %s", names, reason)
    return ScoreReport(scores, reasons, per_caption, tokenizer, counts)


def _check_metrics(metrics: Iterable[str]) -> tuple[str, ...]:
    asked = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    for metric in asked:
        if metric not in METRICS:
            close = difflib.get_close_matches(str(metric), METRICS, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"unknown metric {metric!r}, allowed: {', '.join(METRICS)}{hint}")
    return tuple(metric for metric in METRICS if metric in asked)


def _choose_tokenizer(tokenizer: str) -> str:
    if tokenizer not in ("auto", *TOKENIZERS):
        raise ValueError(f"unknown tokenizer {tokenizer!r}, allowed: auto, {', '.join(TOKENIZERS)}")
    if tokenizer != "auto":
        return tokenizer
    return "java" if shutil.which("java") else "python"


_Captions = dict[str, list[str]]
_Split = tuple[_Captions, list[_Captions]]  # references, and sets of one candidate for each
_Results = list[tuple[float, Sequence[float]]]  # for each score name: of the whole set, and of each caption
_Counts = dict[str, np.ndarray]


def _check_captions(references: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]) -> _Split:
    """Captions by id in one order; exactly one candidate of each set, at least one reference each."""
    if not references and not any(candidates):
        raise ValueError("nothing to score: no references and no candidates")
    sets = []
    for given in candidates:
        faults = (
            ("references without candidate", [key for key in references if key not in given]),
            ("candidates without reference", [key for key in given if key not in references]),
        )
        if any(keys for _, keys in faults):
            raise ValueError("ids differ: " + "; ".join(f"{len(k)} {what}: {_some(k)}" for what, k in faults if k))
        texts = {key: caption_texts(given[key], f"candidates[{key!r}]") for key in references}
        if other := [key for key, value in texts.items() if len(value) != 1]:
            raise ValueError(f"{len(other)} ids do not have exactly one candidate: {_some(other)}")
        sets.append(texts)
    truths = {key: caption_texts(value, f"references[{key!r}]") for key, value in references.items()}
    if empty := [key for key, value in truths.items() if not value]:
        raise ValueError(f"{len(empty)} ids have no reference caption: {_some(empty)}")
    return truths, sets


def _some(keys: Sequence[Any], most: int = 5) -> str:
    return ", ".join(map(repr, keys[:most])) + (", ..." if len(keys) > most else "")


def _tokenize(truths: _Captions, sets: list[_Captions], tokenizer: str, timeout_seconds: float) -> _Split | MetricError:
    """The captions as words between single spaces, or why they could not be split."""
    captions = [text for part in (truths, *sets) for group in part.values() for text in group]
    if tokenizer == "python":
        lines = [ptb.tokenize(caption) for caption in captions]
    else:
        try:
            lines = ptb_tokenize(captions, PTB_JAR, timeout_seconds)
        except MetricError as error:
            return MetricError(f"no tokens: {error}")
    words = iter([" ".join(token for token in line if token not in PUNCTUATION) for line in lines])
    split, *several = [{key: [next(words) for _ in group] for key, group in part.items()} for part in (truths, *sets)]
    return split, several


def _run(metric: str, truths: _Captions, sets: list[_Captions], timeout_seconds: float) -> list[_Results | MetricError]:
    """A metric's results for each set, or why there are none."""
    try:
        if metric in _JAVA_METRICS:
            program, jar = (meteor, _METEOR_JAR) if metric == "meteor" else (spice, _SPICE_JAR)
            lines = [[text for (text,) in texts.values()] for texts in sets]
            found: list[_Results] = [[each] for each in program(list(truths.values()), lines, jar, timeout_seconds)]
        else:
            found = [_SCORERS[metric](truths, texts) for texts in sets]
    except MetricError as error:
        return [error] * len(sets)
    wholes = [[whole for whole, _ in results] for results in found]
    return [
        results if all(map(math.isfinite, each)) else MetricError(f"the result is {each}")
        for results, each in zip(found, wholes, strict=True)
    ]


def _bleu(truths: _Captions, texts: _Captions) -> _Results:
    return list(zip(*Bleu(4).compute_score(truths, texts, verbose=0), strict=True))


def _bleu_counts(truths: _Captions, texts: _Captions) -> _Counts:
    scorer = BleuScorer(n=4)
    for key, (text,) in texts.items():
        scorer += (text, truths[key])
    counts = {}
    for key, found in zip(texts, scorer.ctest, strict=True):
        _, closest = min((abs(length - found["testlen"]), length) for length in found["reflen"])
        counts[key] = np.array([*found["correct"], *found["guess"], found["testlen"], closest], float)
    return counts


def _rouge_l(truths: _Captions, texts: _Captions) -> _Results:
    return [Rouge().compute_score(truths, texts)]


def _cider(truths: _Captions, texts: _Captions) -> _Results:
    if len(truths) < 2:
        raise MetricError("CIDEr weighs words by how few of the clips have them, so it needs 2 clips or more, got 1")
    if not any(map(any, truths.values())):
        raise MetricError("no reference holds a word")
    return [Cider().compute_score(truths, texts)]


_SCORERS: dict[str, Callable[[_Captions, _Captions], _Results]] = {"bleu": _bleu, "rouge_l": _rouge_l, "cider": _cider}
_JAVA_METRICS = ("meteor", "spice")
_NAMES = {metric: (metric,) for metric in METRICS} | {"bleu": SCORES[:4]}
