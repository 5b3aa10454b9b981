"""Run every bash and python block of README.md in order, in a fresh clone: readme_blocks.py [--long] [--keep FOLDER]

Blocks share one folder, the clone, and what they leave there, an environment that one activated too; each python block
is a program of its own. A comment in the line before a fence says what is special:

    <!-- not run: why -->   cannot run here
    <!-- long: why -->      takes more than a few minutes, and runs with --long only

The first block that fails ends it, with exit status 1. The log of the others goes to standard output, with their times.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(
    r"^(?:<!-- (?P<mark>not run|long): (?P<why>.+?) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S
)


class Block(NamedTuple):
    """A fenced block: its first line in the file, and what its mark says of it."""

    line: int
    language: str
    code: str
    mark: str | None
    why: str | None


def blocks(text: str) -> Iterator[Block]:
    """The bash and python blocks of a Markdown file.

    Raises:
        ValueError: a mark that stands before no fence.
    """
    found = list(FENCE.finditer(text))
    marks = re.findall(r"<!-- (?:not run|long): ", text)
    if len(marks) != sum(match["mark"] is not None for match in found):
        raise ValueError("a mark (not run, long) must stand in the line before a fence")
    for match in found:
        if match["language"] in ("bash", "python"):
            line = text.count("\n", 0, match.start("code"))
            yield Block(line, match["language"], match["code"], match["mark"], match["why"])


def run(block: Block, folder: Path, environment: dict[str, str]) -> int:
    """Run a block in a folder, its output going where ours does; its exit status."""
    shell = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else ["python", "-c"]
    return subprocess.run([*shell, block.code], cwd=folder, env=environment, stderr=subprocess.STDOUT).returncode


def fresh_clone(folder: Path) -> dict[str, str]:
    """Clone the committed tree; the environment variables for its blocks, without a Python environment of ours."""
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder)], check=True)
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    path = [part for part in outside["PATH"].split(os.pathsep) if not (Path(part) / "activate").exists()]
    return {**outside, "PATH": os.pathsep.join(path), "CI": "true", "HF_HUB_OFFLINE": "1"}


def activate(block: Block, folder: Path, environment: dict[str, str]) -> None:
    """As in a reader's shell, an environment that a block activates stays so."""
    if found := re.search(r"^source (\S+)/activate\b", block.code, re.M):
        environment["PATH"] = f"{folder / found[1]}{os.pathsep}{environment['PATH']}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="blocks marked long too")
    parser.add_argument("--list", action="store_true", help="say what would run, and end")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="clone into FOLDER and leave it; it must not exist")
    options = parser.parse_args()
    found = list(blocks((ROOT / "README.md").read_text(encoding="utf-8")))
    folder = options.keep or Path(tempfile.mkdtemp()) / "salcap"
    environment = {} if options.list else fresh_clone(folder)
    tally = {"ran": 0, "skipped": 0}
    try:
        for block in found:
            where = f"README.md:{block.line} ({block.language})"
            if block.mark == "not run" or (block.mark == "long" and not options.long):
                print(f"== skipped {where}: {block.mark}: {block.why}", flush=True)
                tally["skipped"] += 1
                continue
            print(f"== {where}", flush=True)
            tally["ran"] += 1
            if options.list:
                continue
            started = time.monotonic()
            status = run(block, folder, environment)
            print(f"== {where}: status {status}, {time.monotonic() - started:.1f} s", flush=True)
            if status:
                print(block.code)
                return 1
            activate(block, folder, environment)
    finally:
        if not options.keep and not options.list:
            shutil.rmtree(folder.parent, ignore_errors=True)
    print(f"all blocks passed: {tally['ran']} ran, {tally['skipped']} skipped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
