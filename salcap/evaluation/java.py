"""The Java programs behind the caption metrics, supervised: a time limit, a checked exit status, nothing left behind.

They run in the folder of their jar, so that no path reaches them that they could misread (METEOR cannot bear a space
in one), and write nothing there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

T = TypeVar("T")


class MetricError(RuntimeError):
    """A metric cannot be computed; the message says why, in the failed program's own words where it has any."""


def ptb_tokenize(captions: Sequence[str], jar: Path, timeout_seconds: float) -> list[list[str]]:
    """Split captions into lower-case Penn Treebank tokens, punctuation included (Stanford CoreNLP's PTBTokenizer)."""
    # it works by line, and takes every line break of Unicode for one
    text = "".join(" ".join(caption.splitlines()) + "\n" for caption in captions)
    arguments = ["-cp", jar.name, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    answer = run_java(
        [*arguments, "-encoding", "UTF-8"],
        jar.parent,
        timeout_seconds,
        lambda process: process.communicate(text.encode("utf-8", "replace"))[0],
    )
    lines = answer.decode("utf-8").split("\n")[:-1]
    if len(lines) != len(captions):
        raise MetricError(f"the PTB tokenizer gave {len(lines)} lines for {len(captions)} captions")
    return [line.rstrip().split(" ") for line in lines]


def meteor(
    references: Sequence[Sequence[str]], sets: Sequence[Sequence[str]], jar: Path, timeout_seconds: float
) -> list[tuple[float, list[float]]]:
    """METEOR 1.5 (Denkowski and Lavie, 2014) of sets of tokenised captions: of each whole set, and of its captions."""

    def score(process: subprocess.Popen[bytes], candidates: Sequence[str]) -> tuple[float, list[float]]:
        questions = []
        for texts, candidate in zip(references, candidates, strict=True):
            fields = [text.replace("|||", " ") for text in (*texts, candidate)]
            questions.append(" ||| ".join(["SCORE", *fields]))
        statistics = []
        # several at a time, for a wait for each answer is long beside busy threads; few, for answers fill a pipe
        for start in range(0, len(questions), 16):
            several = questions[start : start + 16]
            _write_line(process, "\n".join(several))
            statistics += [_read_line(process) for _ in several]
        _write_line(process, " ||| ".join(["EVAL", *statistics]))
        *scores, whole = [float(_read_line(process)) for _ in range(len(candidates) + 1)]
        return whole, scores

    # the paraphrase table's place is given, for where METEOR looks by itself it fails on a path with spaces
    arguments = ["-Xmx2G", "-jar", jar.name, "-", "-", "-stdio", "-l", "en", "-norm", "-a", "data/paraphrase-en.gz"]
    return run_java(arguments, jar.parent, timeout_seconds, lambda process: [score(process, each) for each in sets])


def spice(
    references: Sequence[Sequence[str]], sets: Sequence[Sequence[str]], jar: Path, timeout_seconds: float
) -> list[tuple[float, list[float]]]:
    """SPICE 1.0 (Anderson et al., 2016) of sets of tokenised captions: the mean F-score, and each caption's.

    Raises:
        MetricError: also where the Stanford models, which do not come with pycocoevalcap, are not beside the jar.
    """
    models = [jar.parent / "lib" / f"stanford-corenlp-3.6.0{part}.jar" for part in ("", "-models")]
    if missing := [str(path) for path in models if not path.is_file()]:
        raise MetricError(f"SPICE needs {' and '.join(missing)}, from Stanford CoreNLP 3.6.0 (2015-12-09)")
    items = [
        {"image_id": index, "test": candidate, "refs": list(texts)}
        for index, (texts, candidate) in enumerate(
            pair for candidates in sets for pair in zip(references, candidates, strict=True)
        )
    ]
    with tempfile.TemporaryDirectory(prefix="salcap-spice-") as folder:
        asked, answered = Path(folder, "in.json"), Path(folder, "out.json")
        asked.write_text(json.dumps(items), encoding="utf-8")
        arguments = ["-Xmx8G", "-jar", jar.name, str(asked), "-out", str(answered), "-silent"]
        run_java(arguments, jar.parent, timeout_seconds, lambda process: process.communicate())
        results = json.loads(answered.read_text(encoding="utf-8"))
    score_of = {item["image_id"]: float(item["scores"]["All"]["f"]) for item in results}
    scores = np.array([score_of[index] for index in range(len(items))]).reshape(len(sets), -1)
    return [(float(each.mean()), each.tolist()) for each in scores]


def run_java(
    arguments: Sequence[str], folder: Path, timeout_seconds: float, talk: Callable[[subprocess.Popen[bytes]], T]
) -> T:
    """Run ``java ARGUMENTS`` in ``folder``, let ``talk`` use its pipes, and hand back what ``talk`` returns.

    Raises:
        MetricError: no Java on PATH, an exit status other than 0, pipes closed before ``talk`` was done, or more than
            ``timeout_seconds`` in all.
    """
    java = shutil.which("java")
    if java is None:
        raise MetricError("no java on PATH (any Java 8 or later will do)")
    with tempfile.TemporaryFile() as stderr:  # a file: a pipe that nobody reads blocks the program once it is full
        process = subprocess.Popen(
            [java, *arguments],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # a process group of its own, so that what a wrapper script starts ends with it
        )
        overdue = threading.Event()

        def stop() -> None:
            overdue.set()
            _kill_group(process)  # this ends every read, write and wait on it, so no step needs a limit of its own

        timer = threading.Timer(timeout_seconds, stop)
        timer.daemon = True
        timer.start()
        answer: list[T] = []
        try:
            with suppress(BrokenPipeError, EOFError):  # it ended too early: its status and its words say why
                answer.append(talk(process))
                _pipe(process.stdin).close()
            status = process.wait()
        finally:
            timer.cancel()
            _kill_group(process)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):
                    _pipe(pipe).close()
        if overdue.is_set():
            raise MetricError(f"java took more than {timeout_seconds:g} s and was stopped")
        if status != 0 or not answer:
            stderr.seek(0)
            words = " ".join(stderr.read().decode("utf-8", "replace").split())
            raise MetricError(f"java ended with status {status}: {words[:300] or 'no message'}")
        return answer[0]


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it is gone already
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _write_line(process: subprocess.Popen[bytes], line: str) -> None:
    _pipe(process.stdin).write(line.encode("utf-8", "replace") + b"\n")
    _pipe(process.stdin).flush()


def _read_line(process: subprocess.Popen[bytes]) -> str:
    line = _pipe(process.stdout).readline()
    if not line:
        raise EOFError
    return line.decode("utf-8").strip()


def _pipe(stream: IO[bytes] | None) -> IO[Any]:
    assert stream is not None
    return stream
