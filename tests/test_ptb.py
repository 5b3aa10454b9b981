"""The Python tokenizer against Java's: its output as stored in ptb_tokens.tsv, and the program itself where it is."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from salcap.evaluation.captions import PTB_JAR, PUNCTUATION
from salcap.evaluation.java import ptb_tokenize
from salcap.evaluation.ptb import tokenize

# hard captions, a tab, and the tokens that Java gave when another word followed the caption
STORED = [
    tuple(line.split("\t"))
    for line in Path(__file__).with_name("ptb_tokens.tsv").read_text(encoding="utf-8").split("\n")[:-1]
]
PIECES = (
    "the a man dog TV U.S. St. Mr. etc. a.m. e.g. Inc. Jr. Ave. don't can't it's dogs' I'm we've isn't cannot gonna "
    "o'clock O'Brien ma'am t-shirt well-known 20-year-old 3 10 1,000 3.5 1/2 10:30 $5 50% #1 8th 1950s 80's 5pm mp3 "
    "R&B AT&T and/or w/o café “hi” ‘hi’ it’s foo.com @me #tag :) ;) ... … -- — ! ? , ; : . ' \" ( ) [ ] / & * + = _ £5 "
    "½ 5° 日本 I c J. Smith D.C. n't 6'2\" 9-11 '70s 24/7 Hawai'i 10/29/2011 mid-air self- The It"
)


def words(tokens: list[str]) -> list[str]:
    return [token for token in tokens if token and token not in PUNCTUATION]


@pytest.mark.parametrize("caption, tokens", STORED, ids=[caption[:20] for caption, _ in STORED])
def test_hard_captions(caption: str, tokens: str) -> None:
    assert tokenize(f"{caption} zz") == [*tokens.split(" "), "zz"]


def test_java_gives_the_stored_tokens(java: str) -> None:
    tokens = ptb_tokenize([f"{caption} zz" for caption, _ in STORED], PTB_JAR, 60)
    assert tokens == [[*stored.split(" "), "zz"] for _, stored in STORED]


def test_random_mixtures_of_hard_pieces(java: str) -> None:
    """Captions that no rule was fitted to; people's captions are far easier."""
    chance, pieces = random.Random(0), PIECES.split()
    ends = [*[""] * 12, *".,!?:;)'\"”-%", "'s", "...", '."', "s", ")."]
    captions = [
        " ".join(chance.choice(pieces) + chance.choice(ends) for _ in range(chance.randint(4, 9))) + " zz"
        for _ in range(2000)
    ]
    by_java = ptb_tokenize(captions, PTB_JAR, 60)
    equal = sum(words(tokenize(caption)) == words(tokens) for caption, tokens in zip(captions, by_java, strict=True))
    assert equal >= 0.98 * len(captions)


def test_peoples_captions(shared: Path, java: str) -> None:
    lines = (shared / "data/captions/flickr8k/captions.jsonl").read_text(encoding="utf-8").splitlines()[:2000]
    captions = [caption for line in lines for caption in json.loads(line)["captions"]]
    by_java = ptb_tokenize(captions, PTB_JAR, 60)
    equal = sum(words(tokenize(caption)) == words(tokens) for caption, tokens in zip(captions, by_java, strict=True))
    assert equal >= 0.999 * len(captions)


def test_the_end_of_a_caption_ends_its_sentence() -> None:
    assert tokenize("the letter c.") == ["the", "letter", "c", "."]
    assert tokenize("the letter c. is") == ["the", "letter", "c.", "is"]
    assert tokenize("in the U.S.") == ["in", "the", "u.s.", "."]


@pytest.mark.parametrize("caption", ["", " ", "\n", "\u3000", "😀", "\ud800", "\x00"])
def test_nothing_to_say_is_no_token(caption: str) -> None:
    assert tokenize(caption) == []


def test_line_breaks_are_spaces() -> None:
    assert tokenize("x\ny\r\nz\x0b\x85\u2028w") == ["x", "y", "z", "w"]
