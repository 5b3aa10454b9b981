"""Caption a video, as a whole and in windows of two seconds: caption_video.py [VIDEO]"""

from __future__ import annotations

import sys
from pathlib import Path

import salcap

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample.mp4"


def main(video: Path = SAMPLE) -> None:
    captioner = salcap.SaliencyCaptioner.from_pretrained("salcap-mini")
    caption = captioner.caption(video, num_frames=8)
    print(caption.text, f"({caption.visual_tokens} visual tokens, {sum(caption.timings.values()):.0f} ms)")
    for window in captioner.caption_windows(video, 2.0, num_frames=4):
        print(f"{window.start_seconds:.1f} to {window.end_seconds:.1f} s: {window.text}")

    pipe = salcap.pipeline("salcap-mini", device="cpu")  # dictionaries, as of transformers.pipeline
    print(pipe(video.read_bytes(), num_frames=8)["caption"])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
