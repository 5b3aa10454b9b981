"""Hashes that tell weights and code apart."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(model: nn.Module) -> str | None:
    """SHA-256 of a model's weights, None where it has none, or some that are not in memory.

    Of the file where the model names one as ``weights_path``. Else of its state dict, names sorted: for each tensor
    the UTF-8 text ``name dtype shape`` and its bytes, so that the file's format does not matter. Where the model comes
    of a file of the user's own code, with ``source_sha256``, of that text and the weights' hash.
    """
    path, source = getattr(model, "weights_path", None), getattr(model, "source_sha256", None)
    found = _state_sha256(model) if path is None else file_sha256(Path(path))
    return found if source is None else hashlib.sha256(f"{source} {found}".encode()).hexdigest()


def _state_sha256(model: nn.Module) -> str | None:
    import torch  # not before there are weights: outputs and the doctor do without

    digest, state = hashlib.sha256(), model.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        return None
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest() if state else None
