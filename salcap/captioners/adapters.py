"""Models that are wrapped or adapted: the model inside, and folders that hold only an adapter."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ADAPTER_FILE = "adapter_config.json"


def unwrap(model: Any) -> tuple[Any, bool]:
    """The transformers model inside ``torch.compile``, ``DataParallel`` and ``PeftModel``, and whether it is adapted.

    Adapters that lie in the model's layers, such as LoRA's, stay active.

    Raises:
        ValueError: an adapter that is not part of the model's layers, such as a learnt prompt.
    """
    adapted = False
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DataParallel", "DistributedDataParallel"):
            inner = model.module
        if inner is None and any(parent.__module__.startswith("peft.") for parent in type(model).__mro__):
            inner, adapted = _inside_peft(model), True
        if inner is None:
            return model, adapted
        model = inner


def find_adapter(path: str, revision: str | None) -> str | None:
    """The folder of an adapter, downloaded if ``path`` is a hub id; None if there is not an adapter."""
    if Path(path).is_dir():
        return path if (Path(path) / ADAPTER_FILE).is_file() else None
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(path, revision=revision, allow_patterns="adapter_*")
    except (OSError, ValueError):
        return None  # what loading it as a model said is the reason to give
    return folder if (Path(folder) / ADAPTER_FILE).is_file() else None


def read_base(folder: str) -> tuple[str, str | None]:
    """Name and revision of an adapter's base model; a path may be relative to the folder.

    Raises:
        ValueError: an adapter that does not name it, or settings that cannot be read.
    """
    file = Path(folder) / ADAPTER_FILE
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    base = settings.get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"the adapter {folder} does not name its base model (base_model_name_or_path): load that model, put the"
            " adapter on it with peft.PeftModel.from_pretrained(model, folder), and give the result with its processor"
        )
    beside = Path(folder) / base
    if not Path(base).exists() and beside.is_dir():
        base = str(beside)
    return base, settings.get("revision")


def is_adapter_alone(path: str) -> bool:
    """Whether a folder holds an adapter without its base model's weights, whose config may lie there nevertheless."""
    folder = Path(path)
    names = {file.name for file in folder.iterdir()} if (folder / ADAPTER_FILE).is_file() else set()
    return bool(names) and not any(name.startswith(("model", "pytorch_model")) for name in names)


def with_adapter(model: Any, folder: str) -> None:
    """Put the adapter of a folder into a model's layers.

    Raises:
        ImportError: peft is not installed.
        OSError: a folder without weights.
        ValueError: an adapter that is not part of the model's layers, such as a learnt prompt, or one whose weights
            have other names or shapes than the model's.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ImportError(f"{folder} holds an adapter, which needs peft: pip install 'salcap[lora]'") from error
    if not any(Path(folder).glob("adapter_model.*")):
        raise OSError(f"it holds {ADAPTER_FILE} without the adapter's weights (adapter_model.safetensors)")
    adapted = PeftModel(model, PeftConfig.from_pretrained(folder))
    _inside_peft(adapted)
    try:
        missing, others = _load(adapted, folder)
        mapping = _renaming(model, missing, others)
        if mapping and not any(_load(adapted, folder, mapping)):
            missing, others = [], []
    except RuntimeError as error:  # of shapes
        raise ValueError(f"the weights of the adapter {folder} do not fit its base model: {error}") from error
    if missing or others:
        wrong = {"lacks": missing, "has others": others}
        found = " and ".join(
            f"{what} ({len(names)}: {', '.join(names[:2])}, ...)" for what, names in wrong.items() if names
        )
        raise ValueError(
            f"the adapter {folder} does not fit its base model, of whose weights it {found}; load it with the version"
            " of transformers that it was made with, and save the model merged (merge_and_unload)"
        )


def own_tokenizer(model: Any, folder: str, trust_remote_code: bool) -> Any | None:
    """The tokenizer that was saved with an adapter, None if there is none; the model gets room for its new tokens."""
    from transformers import AutoTokenizer

    if not (Path(folder) / "tokenizer_config.json").is_file():
        return None
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return tokenizer


def _load(adapted: Any, folder: str, mapping: dict[str, str] | None = None) -> tuple[list[str], list[str]]:
    """Load an adapter's weights; returns the names that are missing, and those that the model does not have."""
    loaded = adapted.load_adapter(folder, "default", key_mapping=mapping)
    names = ([_plain(name) for name in found] for found in (loaded.missing_keys, loaded.unexpected_keys))
    missing, others = (sorted(each) for each in names)
    return missing, others


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".default.", ".")


def _renaming(model: Any, missing: list[str], others: list[str]) -> dict[str, str]:
    """What makes an adapter's names the model's: a wrapper's prefix goes, or older names become those of today."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    from salcap.captioners.weights import extra_prefix

    if not missing or not others:
        return {}
    if prefix := extra_prefix(missing, others):
        return {re.escape(prefix): ""}
    renamings = [each for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)]
    return {source: each.target_patterns[0] for each in renamings for source in each.source_patterns}


def _inside_peft(model: Any) -> Any:
    learnt_prompts = [config for config in model.peft_config.values() if config.is_prompt_learning]
    if learnt_prompts:
        raise ValueError(
            f"an adapter of type {learnt_prompts[0].peft_type.value} is not part of the model's layers, so salcap"
            " cannot use it; give the base model, or an adapter such as LoRA"
        )
    return model.base_model.model
