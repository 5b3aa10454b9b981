"""The student on the fastest runtime of this machine: converted once in memory, frames in batches on all threads."""

from __future__ import annotations

import copy
import io
import math
import threading
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from salcap.config import check_choice
from salcap.saliency.model import map_parts, shrink_frames
from salcap.saliency.uva_net import UvaNet

RUNTIMES = ("auto", "torch", "onnx", "openvino")
# runtime -> the packages that it needs, also the extra that installs them; fastest first. torch's exporter needs onnx.
_PACKAGES = {"openvino": ("openvino", "onnx"), "onnx": ("onnxruntime", "onnx"), "torch": ()}
_FRAMES_PER_PASS = {"openvino": 16, "onnx": 16, "torch": 64, "cuda": 256}  # more are no faster and take more memory
_FEWEST_FRAMES = 4  # of a pass, where a thread could have its own
_CUDA_GRAPHS = 16  # numbers of frames whose graphs are kept
_ONE_THREAD_A_CALL = ("onnx", "openvino")
_OPSET = 17
_CONVERTING = threading.Lock()  # torch's exporter keeps its state in globals

# Frames (n, 3, h, w) in 0..1 or uint8, of clips also their times (n,) float32, to maps (n, h', w')
Network = Callable[..., Tensor]


def installed_runtimes() -> tuple[str, ...]:
    """Runtimes for the CPU whose packages are installed, fastest first."""
    return tuple(name for name, packages in _PACKAGES.items() if all(map(find_spec, packages)))


def check_installed(runtime: str) -> None:
    """Raise an ImportError that names the extra, unless the packages of a runtime are there."""
    if not all(map(find_spec, _PACKAGES[runtime])):
        raise ImportError(f"{runtime} needs {' and '.join(_PACKAGES[runtime])}: pip install salcap[{runtime}]")


class FastUvaNet(UvaNet):
    """`UvaNet` for prediction: what runs is made from its weights at the first call, BatchNorms folded.

    In training, and where gradients are recorded, it is a plain `UvaNet`; it is saved and loaded as one. Weights that
    are loaded or moved later are seen; those changed in place by other means are not until `use_runtime` is called.
    """

    runtime = _on_cpu = "torch"

    def use_runtime(self, runtime: str) -> FastUvaNet:
        """Choose what runs the network; returns itself.

        Args:
            runtime: "torch": the model's own device and precision. "onnx" (onnxruntime) and "openvino": the CPU, in
                float32. "auto": on the CPU in float32 the first of openvino, onnx and torch that is installed; on CUDA
                torch, a model in float32 in half precision; else torch.

        Raises:
            ValueError: another name, or a model that is not on the CPU in float32 where the runtime needs that.
            ImportError: a runtime that is not installed; the extra is named.
        """
        check_choice("runtime", runtime, RUNTIMES)
        on_cpu = installed_runtimes()[0] if runtime == "auto" else runtime
        check_installed(on_cpu)
        _check_place(runtime, self._anchor)
        self.runtime, self._on_cpu = runtime, on_cpu
        self._forget()
        return self

    def forward(self, pixels: Tensor, pts_seconds: Tensor | None = None) -> Tensor:
        if self.training or torch.is_grad_enabled():
            return super().forward(pixels, pts_seconds)
        return self._run(lambda part: part, self.squeeze(pixels), pts_seconds)

    def _see(self, pixels: Tensor, pts_seconds: Tensor | None) -> Tensor:
        """`forward` on uint8 frames; each thread resizes those of its own pass."""
        shrinks = pixels.shape[-2:] == self.input_size or pixels[0].numel() > 3 * math.prod(self.input_size)
        if shrinks and not self.training and pixels.device.type == "cpu" and self._runtime_here() in _ONE_THREAD_A_CALL:
            return self._run(lambda part: shrink_frames(part, self.input_size), pixels, pts_seconds)
        return super()._see(pixels, pts_seconds)

    def _run(self, prepare: Callable[[Tensor], Tensor], pixels: Tensor, pts_seconds: Tensor | None) -> Tensor:
        """Frames in equal passes, several at a time; of clips each pass begins one frame early."""
        runtime, workers, count = self._runtime_here(), torch.get_num_threads(), len(pixels)
        times = pts_seconds if count > 1 else None
        clips = times is not None
        kind = clips, workers, pixels.dtype == torch.uint8
        networks = self.__dict__.setdefault("_networks", {})
        if kind not in networks:
            with _CONVERTING:
                networks[kind] = _convert(self, runtime, *kind)
        network = networks[kind]
        threads = workers if runtime in _ONE_THREAD_A_CALL else 1  # torch has its own
        passes = threads * math.ceil(count / (threads * _FRAMES_PER_PASS[runtime]))
        passes = max(1, min(passes, count // _FEWEST_FRAMES))
        edges = [round(count * number / passes) for number in range(passes + 1)]

        def run(span: tuple[int, int]) -> Tensor:
            first, last = span
            if times is None:
                return network(prepare(pixels[first:last]))
            before = max(0, first - 1)
            since = times[before:last] - times[before]  # small, so that float32 holds them
            return network(prepare(pixels[before:last]), since.to(pixels.device, torch.float32))[first - before :]

        return _join(map_parts(run, pairwise(edges), threads))

    def _runtime_here(self) -> str:
        if self.device.type == "cuda":
            return "cuda"
        return self._on_cpu if _is_plain(self._anchor) else "torch"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FastUvaNet:
        _check_place(self.runtime, fn(self._anchor))
        self._forget()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*args)

    def _forget(self) -> None:
        self.__dict__.pop("_networks", None)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_networks"}


def fold_for_inference(model: UvaNet, clips: bool, raw: bool = False) -> nn.Module:
    """A frozen copy with BatchNorms folded: pixels, of clips also times (n,), to maps (n, h', w').

    Args:
        raw: pixels are (n, h, w, 3) uint8 instead of (n, 3, h, w) in 0..1.
    """
    return _Fused(copy.deepcopy(model).eval().fold().requires_grad_(False), clips, raw)


class _Fused(nn.Module):
    """The prediction alone, of stills or of clips."""

    def __init__(self, model: UvaNet, clips: bool, raw: bool) -> None:
        super().__init__()
        self.model, self.clips, self.raw = model, clips, raw

    def forward(self, pixels: Tensor, times: Tensor | None = None) -> Tensor:
        if self.raw:
            pixels = pixels.permute(0, 3, 1, 2).float() / 255
        return self.model.streams(pixels[None], None if times is None else times[None]).fused


def example_inputs(model: UvaNet, clips: bool, count: int = 5, raw: bool = False) -> tuple[Tensor, ...]:
    """Pixels, and of clips the times, that `fold_for_inference`'s networks take."""
    pixels = torch.rand(count, 3, *model.input_size, generator=torch.Generator().manual_seed(0))
    if raw:
        pixels = (pixels * 255).byte().permute(0, 2, 3, 1).contiguous()
    return (pixels, torch.arange(count) / 8) if clips else (pixels,)


def to_onnx(model: UvaNet, clips: bool, raw: bool = False) -> bytes:
    """The network as an ONNX file: ``pixels`` (frames, 3, h, w) RGB in 0..1, ``raw`` (frames, h, w, 3) uint8, of clips
    also ``times`` (frames,) float32 seconds, to ``log_density`` (frames, h', w') up to a constant per frame; ``frames``
    is open, at least 2 of a clip.
    """
    network = fold_for_inference(model, clips, raw).float().cpu()
    names = ["pixels", "times"][: 1 + clips]
    content = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter that needs no onnxscript is the older one, which it says
        torch.onnx.export(
            network,
            example_inputs(model, clips, raw=raw),
            content,  # type: ignore[arg-type]  # the older exporter takes a stream as well
            dynamo=False,
            opset_version=_OPSET,
            input_names=names,
            output_names=["log_density"],
            dynamic_axes={name: {0: "frames"} for name in (*names, "log_density")},
        )
    return content.getvalue()


def open_onnx(model: bytes | str) -> Network:
    """An ONNX file or its content in onnxruntime, one thread a call; calls may run side by side."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        feed = dict(zip(names, _arrays(inputs), strict=True))
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def open_openvino(model: bytes | str, workers: int) -> Network:
    """An ONNX or OpenVINO file, or the content of the former, in OpenVINO.

    As many calls may run side by side as it has workers, of one thread each.
    """
    import openvino

    core = openvino.Core()
    settings = {
        "NUM_STREAMS": workers,
        "INFERENCE_NUM_THREADS": workers,
        "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the CPU has it
        "ENABLE_CPU_PINNING": False,  # a pinned thread waits for whatever else has its core
    }
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    requests: SimpleQueue[Any] = SimpleQueue()
    for _ in range(workers):
        requests.put(compiled.create_infer_request())

    def run(*inputs: Tensor) -> Tensor:
        request = requests.get()
        try:
            found = request.infer(_arrays(inputs), share_inputs=True)
            return torch.from_numpy(found[0])
        finally:
            requests.put(request)

    return run


def _arrays(inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    """Pixels and times as runtimes want them: raw pixels channels last."""
    pixels, *times = (tensor.numpy() for tensor in inputs)
    return [np.ascontiguousarray(pixels.transpose(0, 2, 3, 1) if pixels.dtype == np.uint8 else pixels), *times]


def _convert(model: FastUvaNet, runtime: str, clips: bool, workers: int, raw: bool) -> Network:
    if runtime == "onnx":
        return open_onnx(to_onnx(model, clips, raw))
    if runtime == "openvino":
        return open_openvino(to_onnx(model, clips, raw), workers)
    network = fold_for_inference(model, clips).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if runtime == "torch":
        return lambda pixels, *times: network(pixels.contiguous(memory_format=torch.channels_last), *times)
    return _graphed(network.half() if model.runtime == "auto" and model._anchor.dtype == torch.float32 else network)


def _graphed(network: nn.Module) -> Network:
    """A network on CUDA whose kernels are started as one graph for each number of frames."""
    graphs: dict[int, Any] = {}
    dtype = next(network.parameters()).dtype

    def run(pixels: Tensor, *times: Tensor) -> Tensor:
        inputs = (pixels.to(dtype).contiguous(memory_format=torch.channels_last), *times)
        if len(pixels) not in graphs:
            if len(graphs) == _CUDA_GRAPHS:
                graphs.clear()
            kept = tuple(tensor.clone() for tensor in inputs)  # a graph reads from the tensors that it was made with
            graphs[len(pixels)] = torch.cuda.make_graphed_callables(lambda *args: network(*args), kept)
        return graphs[len(pixels)](*inputs).clone()

    return run


def _join(maps: list[Tensor]) -> Tensor:
    if len(maps) == 1 or maps[0].device.type != "cpu":
        return torch.cat(maps)
    return torch.from_numpy(np.concatenate([part.float().numpy() for part in maps]))  # on one thread


def _is_plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _check_place(runtime: str, anchor: Tensor) -> None:
    if runtime in _ONE_THREAD_A_CALL and not _is_plain(anchor):
        raise ValueError(
            f"runtime {runtime!r} runs on the CPU in float32, got {anchor.device} in {anchor.dtype};"
            " allowed there: runtime 'auto' or 'torch'"
        )
