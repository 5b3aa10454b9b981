"""Caption many videos to a file of records, and go on where a run was ended: caption_corpus.py [FOLDER]

FOLDER gets three clips here, one of them damaged. From the command line: `salcap caption FOLDER --output out.jsonl`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import salcap
from salcap.manifest import find_items
from salcap.outputs import export_records
from salcap.records import read_records

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample.mp4"


def main(folder: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(SAMPLE, folder / name)
    (folder / "damaged.mp4").write_bytes(SAMPLE.read_bytes()[:1000])
    output = folder / "records.jsonl"
    captioner = salcap.SaliencyCaptioner.from_pretrained("salcap-mini")
    for attempt in ("first", "second"):  # the second finds all done
        summary = salcap.caption_corpus(
            captioner, find_items([folder / "*.mp4"]), output, num_frames=4, batch_size=2, num_workers=1
        )
        print(f"{attempt} run: {summary.num_new} new of {summary.num_items}, failed: {summary.errors}")
    for record in read_records(output):
        print(f"{Path(record['id']).name}: {record['caption'] or record['error']}")
    export_records(read_records(output), folder / "captions.csv")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
