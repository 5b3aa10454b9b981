"""What the arms of a comparison did, kept in a folder, so that one that was killed goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from salcap.evaluation.compare import NONE, Arm
from salcap.evaluation.receipt import RunSettings
from salcap.records import RecordFile, settings_path

FAITHFULNESS = "faithfulness.jsonl"


@contextmanager
def arm_records(
    folder: str | Path, runs: Mapping[Arm, RunSettings], times_sha256: str
) -> Iterator[tuple[dict[Arm, RecordFile], RecordFile]]:
    """Files of records: of each arm ("00-none.jsonl"), and of the clips on which faithfulness was measured.

    Args:
        folder: made where it does not exist.
        runs: the settings of each arm.
        times_sha256: of the clips.

    Raises:
        ValueError: the folder holds the records of a comparison of other arms, or under other settings.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shared = {"arms": [arm.name for arm in runs], "times_sha256": times_sha256}
    with ExitStack() as stack:

        def opened(name: str, run: RunSettings) -> RecordFile:
            return stack.enter_context(RecordFile(folder / name, {**shared, **vars(run)}, retry_failed=True))

        files = {arm: opened(_file_name(number, arm), run) for number, (arm, run) in enumerate(runs.items())}
        yield files, opened(FAITHFULNESS, runs[NONE])


def can_go_on(folder: Path) -> bool:
    """Whether a comparison may keep its records in a folder that exists: it is empty, or one has begun there."""
    return folder.is_dir() and (not any(folder.iterdir()) or settings_path(folder / _file_name(0, NONE)).exists())


def _file_name(number: int, arm: Arm) -> str:
    name = re.sub(r"[^\w.+-]+", "-", arm.name)
    return f"{number:02d}-{name}.jsonl"
