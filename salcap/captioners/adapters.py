"""Models that are wrapped or adapted: the model inside, and folders that hold only an adapter."""

from __future__ import annotations

import json
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
    """Name and revision of an adapter's base model.

    Raises:
        ValueError: an adapter that does not name it.
    """
    settings = json.loads((Path(folder) / ADAPTER_FILE).read_text(encoding="utf-8"))
    base = settings.get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"the adapter {folder} does not name its base model (base_model_name_or_path): load that model, put the"
            " adapter on it with peft.PeftModel.from_pretrained(model, folder), and give the result with its processor"
        )
    return base, settings.get("revision")


def with_adapter(model: Any, folder: str) -> None:
    """Put the adapter of a folder into a model's layers.

    Raises:
        ImportError: peft is not installed.
        ValueError: an adapter that is not part of the model's layers, such as a learnt prompt.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ImportError(f"{folder} holds an adapter, which needs peft: pip install 'salcap[lora]'") from error
    _inside_peft(PeftModel.from_pretrained(model, folder))


def _inside_peft(model: Any) -> Any:
    learnt_prompts = [config for config in model.peft_config.values() if config.is_prompt_learning]
    if learnt_prompts:
        raise ValueError(
            f"an adapter of type {learnt_prompts[0].peft_type.value} is not part of the model's layers, so salcap"
            " cannot use it; give the base model, or an adapter such as LoRA"
        )
    return model.base_model.model
