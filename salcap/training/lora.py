"""Low-rank adapters by peft. https://arxiv.org/abs/2106.09685"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

from salcap.training.finetune_settings import LoraSettings


def add_lora(model: Any, settings: LoraSettings, frozen: Sequence[str] = ()) -> Any:
    """Put adapters into a model, which stays what it is but for them; they alone are trained from now on.

    Args:
        frozen: beginnings of names of what gets none.

    Returns:
        peft's tuner, for `merge_lora`.

    Raises:
        ImportError: no peft.
        ValueError: target modules that the model lacks or has frozen; none given, and the architecture unknown to peft.
    """
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ModuleNotFoundError as error:
        raise ImportError("lora needs peft: pip install 'salcap[lora]'") from error
    targets = settings.target_modules
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(targets) if isinstance(targets, tuple) else targets,
        exclude_modules="|".join(f"{re.escape(name.removesuffix('.weight'))}.*" for name in frozen) or None,
    )
    try:
        return LoraModel(model, config, "default")
    except ValueError as error:
        kind = model.config.model_type
        rest = f" but for what is frozen, {', '.join(frozen)}" if frozen else " ('all-linear' does)"
        raise ValueError(f"lora: target_modules {targets!r} do not fit {kind!r}{rest}: {error}") from error


def merge_lora(tuner: Any) -> Any:
    """A copy of the model with the adapters in its weights, of the class that it always had."""
    return copy.deepcopy(tuner).merge_and_unload()
