"""How many captions does the Python tokenizer split as Java's does? One row a file, and what the rest is.

    python scripts/tokenizer_parity.py ../shared/data

Counted are captions whose tokens are equal once punctuation is removed, as scoring removes it, and those whose tokens
are all equal. The files are those of the research data: Flickr8k, the sentences of COCO val2017, MSR-VTT, MSVD (test
captions are only counted here) and the scorer's sets. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from salcap.evaluation import ptb
from salcap.evaluation.caption_files import load_captions
from salcap.evaluation.captions import PTB_JAR, PUNCTUATION
from salcap.evaluation.java import ptb_tokenize


def read_sets(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Name and captions of each file, as people wrote them."""
    lines = (root / "captions/flickr8k/captions.jsonl").read_text(encoding="utf-8").splitlines()
    yield "flickr8k", [text for line in lines for text in json.loads(line)["captions"]]
    with gzip.open(root / "captions/coco_val2017/all_captions.txt.gz", "rt", encoding="utf-8") as file:
        yield "coco_val2017", file.read().split("\n")[:-1]
    for part in ("train_val", "test"):
        sentences = read_json(root / f"captions/msrvtt/{part}_videodatainfo.json.gz")["sentences"]
        yield f"msrvtt_{part}", [sentence["caption"] for sentence in sentences]
    yield "msvd", flat(load_captions(root / "captions/msvd/msvd_captions.json.gz"))
    yield "scorer_references", flat(load_captions(root / "scorer/ds235_references.json.gz"))
    for model in ("blip", "git"):
        yield f"scorer_{model}", flat(load_captions(root / f"scorer/ds235_{model}.json.gz", "candidates"))


def read_json(path: Path) -> Any:
    with gzip.open(path) as file:
        return json.load(file)


def flat(captions: dict[str, list[str]]) -> list[str]:
    return [text for texts in captions.values() for text in texts]


def words(tokens: list[str]) -> list[str]:
    return [token for token in tokens if token and token not in PUNCTUATION]


def category(java: list[str], python: list[str]) -> str:
    """What tells two splits apart: the tokens of each that the other lacks."""
    ours, theirs = Counter(words(python)), Counter(words(java))
    return f"java {sorted((theirs - ours).elements())}, python {sorted((ours - theirs).elements())}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder that holds captions/ and scorer/")
    rows, rest = {}, Counter()
    for name, captions in read_sets(parser.parse_args().root):
        by_java = ptb_tokenize(captions, PTB_JAR, timeout_seconds=600)
        pairs = [(java, ptb.tokenize(caption)) for java, caption in zip(by_java, captions, strict=True)]
        apart = [pair for pair in pairs if words(pair[0]) != words(pair[1])]
        rest.update(category(*pair) for pair in apart)
        equal = sum([token for token in java if token] == python for java, python in pairs)
        rows[name] = {"captions": len(pairs), "differ": len(apart), "differ_with_punctuation": len(pairs) - equal}
        print(
            f"{name:18} {len(pairs):7,} captions, {len(apart)} differ, {len(pairs) - equal} with punctuation",
            flush=True,
        )
    total = {key: sum(row[key] for row in rows.values()) for key in ("captions", "differ", "differ_with_punctuation")}
    print(f"equal without punctuation: {1 - total['differ'] / total['captions']:.4%} of {total['captions']:,}")
    for what, count in rest.most_common():
        print(f"{count:4} {what}")
    print(json.dumps({"sets": rows, "total": total, "rest": rest}))


if __name__ == "__main__":
    main()
