"""Export the student to a file that runs without salcap, and check the file against the original network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from salcap.config import check_choice
from salcap.saliency.density import normalise_log_density
from salcap.saliency.model import SaliencyModel
from salcap.saliency.runtimes import (
    Network,
    check_installed,
    example_inputs,
    fold_for_inference,
    open_onnx,
    open_openvino,
    to_onnx,
)
from salcap.saliency.uva_net import UvaNet

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
TOLERANCE = 1e-4  # largest allowed difference of a log-density
_MAX_COUNT = 2**31 - 1  # frames; torch 2.6 cannot export clips without an upper limit
_COUNTS = (3, 4, 17)  # frames per check; they differ from the number that the network was traced with


class ParityError(RuntimeError):
    """An exported file gives different maps than the original network; the file has been removed."""


def export_student(model: SaliencyModel, path: str | Path, kind: str, clips: bool = False) -> float:
    """Write the network to a file and check the file.

    The BatchNorms are folded. The file maps ``pixels`` (frames, 3, h, w) RGB in 0..1 to log-density (frames, h', w'),
    up to a constant per frame, for any number of frames.

    Args:
        model: a student, such as ``create_saliency("uva_net")``.
        path: ends with the suffix of its kind. The weights of an OpenVINO file are written beside it as ``.bin``.
        kind: "onnx", "openvino" (.xml), or "torch" (.pt2, a `torch.export` program).
        clips: export the network for consecutive frames, which also takes their times (frames,) float32 in seconds. It
            needs at least 3 frames in torch and at least 2 in the other formats.

    Returns:
        The largest difference between the log-densities of the file and of the network, on random frames.

    Raises:
        ValueError: the backbone is not a student, the kind is unknown, or the suffix does not match it.
        ImportError: the kind's runtime is not installed; the message names the extra.
        ParityError: the difference is above 1e-4.
    """
    if not isinstance(model, UvaNet):
        raise ValueError(f"only uva_net and uva_net_32 can be exported, got {model.name!r}")
    check_choice("format", kind, tuple(SUFFIXES))
    path = Path(path)
    if path.suffix != SUFFIXES[kind]:
        raise ValueError(f"a file of format {kind} must end with {SUFFIXES[kind]}, got {path}")
    check_installed(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    network = _WRITERS[kind](model, path, clips)
    difference = _difference(fold_for_inference(model, clips).float().cpu(), network, model, clips)
    if not difference <= TOLERANCE:
        for file in (path, path.with_suffix(".bin")):
            file.unlink(missing_ok=True)
        raise ParityError(f"{path} gave log-densities that differ by {difference:.3g}, allowed: {TOLERANCE:g}")
    return difference


@torch.no_grad()
def _difference(expected: Network, found: Network, model: UvaNet, clips: bool) -> float:
    def largest(count: int) -> float:
        inputs = example_inputs(model, clips, count)
        maps = (normalise_log_density(network(*inputs)) for network in (expected, found))
        return float((next(maps) - next(maps)).abs().max())

    return max(map(largest, _COUNTS))


def _write_onnx(model: UvaNet, path: Path, clips: bool) -> Network:
    path.write_bytes(to_onnx(model, clips))
    return open_onnx(str(path))


def _write_openvino(model: UvaNet, path: Path, clips: bool) -> Network:
    import openvino

    network = openvino.Core().read_model(to_onnx(model, clips))
    openvino.save_model(network, path, compress_to_fp16=False)
    return open_openvino(str(path), 1)


def _write_torch(model: UvaNet, path: Path, clips: bool) -> Network:
    network = fold_for_inference(model, clips).float().cpu()
    inputs = example_inputs(model, clips)
    frames = torch.export.Dim("frames", min=3 if clips else 1, max=_MAX_COUNT)
    with torch.no_grad():
        program = torch.export.export(network, inputs, dynamic_shapes=({0: frames},) * len(inputs))
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()

    def run(*inputs: Tensor) -> Tensor:
        maps = loaded(*inputs)
        assert isinstance(maps, Tensor)
        return maps

    return run


_WRITERS: dict[str, Callable[[UvaNet, Path, bool], Network]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "torch": _write_torch,
}
