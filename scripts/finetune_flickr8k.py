"""Fine-tune a small random GIT on Flickr8k with saliency in the loop: once killed midway and resumed, once undisturbed.

    python scripts/finetune_flickr8k.py ../shared/data/captions/flickr8k --output runs/finetune [--images 320]

Ends with one JSON line: the logs of both runs, the step at which the killed one went on, and the largest difference
between the weights.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import torch
import transformers
import yaml
from safetensors.torch import load_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from salcap.datasets.captioned_images import load_captioned_images
from salcap.training.text import train_tokenizer

SIDE = 64
SHAPE = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}


def make_git(data: Path, folder: Path) -> None:
    """GIT's architecture with random weights, for photographs, and the words of the training captions."""
    words = train_tokenizer([c for item in load_captioned_images(data, "train") for c in item.captions], 2000)
    ids = {"pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    config = transformers.GitConfig(
        vision_config={**SHAPE, "image_size": SIDE, "patch_size": 8}, **SHAPE, **ids, vocab_size=len(words)
    )
    torch.manual_seed(0)
    transformers.GitForCausalLM(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    transformers.GitProcessor(images, words).save_pretrained(folder)


def train(config: Path, kill_at_step: int | None = None) -> int:
    """Run ``salcap train``, and kill it once it has logged a step; returns the step at which it began."""
    command = [sys.executable, "-m", "salcap", "train", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    begun = -1
    assert process.stderr is not None
    for line in process.stderr:
        print(line, end="", flush=True)
        if found := re.search(r"steps (\d+) to \d+", line):
            begun = int(found[1])
        if kill_at_step is not None and (found := re.match(r'{"step": (\d+)', line)) and int(found[1]) >= kill_at_step:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    print(f"begun at step {begun}, ended with status {process.returncode}", flush=True)
    return begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of Flickr8k")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    make_git(options.data, options.output / "git")
    source = {"dataset": "captioned-images", "root": str(options.data)}
    settings = {
        "captioner": str(options.output / "git"),
        "train": {**source, "split": "train", "limit": options.images},
        "validation": {**source, "split": "val", "limit": 50},
        "saliency": "uva_net",
        "weighting": {"mode": "bias+prune", "policy": "foveate", "keep_ratio": 0.5},
        "keep_ratios": [0.25, 0.5, 1.0],
        "learned_gain": True,
        "epochs": options.epochs,
        "learning_rate": 1.0e-3,
        "warmup_steps": 50,
        "checkpoint_steps": 30,
        "max_caption_tokens": 24,
    }
    begun, runs = [], {}
    steps = options.epochs * -(-options.images // 16)
    for name, kill in (("killed", steps // 2), ("undisturbed", None)):
        config = options.output / f"{name}.yaml"
        config.write_text(yaml.safe_dump({**settings, "output": str(options.output / name)}))
        for kill_at_step in (None,) if kill is None else (kill, None):
            begun.append(train(config, kill_at_step))
        lines = (options.output / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
        runs[name] = [json.loads(line) for line in lines]
    weights = [load_file(options.output / name / "model" / "model.safetensors") for name in runs]
    apart = max(float((weights[0][key] - weights[1][key]).abs().max()) for key in weights[0])
    print(json.dumps({**runs, "begun_at_steps": begun, "largest_difference_of_weights": apart}))


if __name__ == "__main__":
    main()
