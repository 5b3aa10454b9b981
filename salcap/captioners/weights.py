"""A checkpoint's weights: all of them are there, under the model's own names or behind a wrapper's prefix."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging as hf_logging

WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # in names of weights


def load_weights(architecture: Any, path: str, unused: Sequence[str] = (), **options: Any) -> Any:
    """A model of a class of ``transformers`` with a checkpoint's weights.

    Args:
        unused: how the names of weights begin that a checkpoint may lack.
        options: of ``from_pretrained``, with the ``config``.

    Raises:
        ValueError: a checkpoint that lacks weights of the model.
    """
    with _no_progress_bar():
        with _held_back(logging.getLogger("transformers.modeling_utils")) as reports:
            model, loading = architecture.from_pretrained(path, output_loading_info=True, **options)
        if prefix := extra_prefix(loading["missing_keys"], loading["unexpected_keys"]):
            reports.clear()  # of the names behind the prefix
            options["key_mapping"] = {re.escape(prefix): ""}
            model, loading = architecture.from_pretrained(path, output_loading_info=True, **options)
    for report in reports:
        logging.getLogger(report.name).handle(report)
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith(tuple(unused) or ("\0",)))
    if missing:
        others = sorted(loading["unexpected_keys"])
        instead = f", it has others instead ({', '.join(others[:3])}, ...)" if others else ""
        raise ValueError(
            f"{path} lacks {len(missing)} weights of {architecture.__name__} ({', '.join(missing[:3])}, ...){instead}:"
            f" it was made for {options['config'].architectures}"
        )
    return model


def extra_prefix(missing: Iterable[str], unexpected: Iterable[str]) -> str | None:
    """What a wrapper put into the names of a checkpoint's weights, as ``torch.compile`` does with ``_orig_mod.``.

    Args:
        missing: names of the model's weights that the checkpoint lacks.
        unexpected: names of the checkpoint's weights that the model does not have.

    Returns:
        The words that, taken out of the unexpected names, make at least one of them missing and none of them another
        one's; None if there are none.
    """
    wanted, others = set(missing), set(unexpected)
    ends = {name[: -len(want)] for want in wanted for name in others if name.endswith("." + want)}
    for prefix in sorted({*WRAPPERS, *ends}, key=len):
        renamed = {name.replace(prefix, "") for name in others if prefix in name}
        if renamed and renamed <= wanted:
            return prefix
    return None


@contextmanager
def _held_back(logger: logging.Logger) -> Iterator[list[logging.LogRecord]]:
    """Collect what a logger says inside, in place of showing it."""
    records: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        records.append(record)
        return False

    logger.addFilter(keep)
    try:
        yield records
    finally:
        logger.removeFilter(keep)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers draws one for loading weights, also where nobody looks; the user's own setting comes back."""
    enabled = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            hf_logging.enable_progress_bar()
