"""Caption text for training: cleaning, the tokenizer, and several captions packed into one sequence."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

PAD, START, END = "<pad>", "<s>", "</s>"


def clean_caption(text: str) -> str:
    """Lower case, one line, no punctuation but apostrophes and hyphens inside words."""
    text = re.sub(r"\s+'(?=(s|re|ll|t|m|ve|d)\b)", "'", text.lower().replace("\u2019", "'"))
    text = re.sub(r"[^\w'\- ]+", " ", text.replace("_", " "))
    text = re.sub(r"(?<!\w)['\-]+|['\-]+(?!\w)", " ", text)
    return " ".join(text.split())


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a lower-case byte-level BPE tokenizer on cleaned captions; no text is out of its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=END, clean_up_tokenization_spaces=False
    )


def read_sentences(path: str | Path, most_per_video: int) -> list[str]:
    """Sentences of a caption file's training part, for language modelling; duplicates of one video are dropped.

    Understands MSR-VTT's ``*videodatainfo.json`` (split "train" only), MSVD's ``{"vidN": [...]}`` (1 to 1,200
    only), ``captions.jsonl`` (split "train" or none) and plain text, each also with ``.gz``.
    """
    path = Path(path)
    raw = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8")
    name = path.name.removesuffix(".gz")
    groups: dict[str, list[str]] = {}
    if name.endswith(".txt"):
        groups = {str(i): [line] for i, line in enumerate(raw.splitlines())}
    elif name.endswith(".jsonl"):
        for record in map(json.loads, raw.splitlines()):
            if record.get("split", "train") == "train":
                groups[record["image"]] = record["captions"]
    else:
        data = json.loads(raw)
        if "sentences" in data:
            train = {video["video_id"] for video in data["videos"] if video["split"] == "train"}
            for sentence in data["sentences"]:
                if sentence["video_id"] in train:
                    groups.setdefault(sentence["video_id"], []).append(sentence["caption"])
        else:
            groups = {key: value for key, value in data.items() if int(key.removeprefix("vid")) <= 1200}
    sentences = []
    for captions in groups.values():
        unique = dict.fromkeys(clean_caption(caption) for caption in captions)
        sentences += [text for text in unique if 3 <= len(text.split()) <= 30][:most_per_video]
    return sentences


def pack_captions(
    rows: Sequence[Sequence[Sequence[int]]], start_id: int, end_id: int, pad_id: int, most_tokens: int
) -> dict[str, Tensor]:
    """Put all captions of an image in one sequence, so that its visual tokens are read once for all of them.

    Args:
        rows: for each image its captions as token ids, without start and end.
        most_tokens: longer captions are cut to this many tokens, start included.

    Returns:
        ``input_ids``, ``labels``, ``position_ids`` (B, L) int64, ``labels`` -100 on padding, ``caption_index``
        (B, L) int64, -1 on padding, and ``attention_mask`` (B, 1, L, L) bool, True where a token may look:
        back within its own caption.
    """
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    positions: list[list[int]] = []
    owners: list[list[int]] = []
    for captions in rows:
        row: tuple[list[int], list[int], list[int], list[int]] = ([], [], [], [])
        for index, caption in enumerate(captions):
            tokens = [start_id, *caption][:most_tokens]
            row[0].extend(tokens)
            row[1].extend([*caption, end_id][: len(tokens)])
            row[2].extend(range(len(tokens)))
            row[3].extend([index] * len(tokens))
        for collected, values in zip((ids, labels, positions, owners), row, strict=True):
            collected.append(values)
    length = max(len(row) for row in ids)

    def stack(values: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (length - len(row)) for row in values])

    owner = stack(owners, -1)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = (owner[:, :, None] == owner[:, None, :]) & causal
    return {
        "input_ids": stack(ids, pad_id),
        "labels": stack(labels, -100),
        "position_ids": stack(positions, 0),
        "caption_index": owner,
        "attention_mask": mask[:, None],
    }
