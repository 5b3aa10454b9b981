"""TF Lite files on LiteRT (extra ``litert``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch


class LiteRtNetwork:
    """One input and one tensor of a .tflite file, whether or not the file declares that tensor as an output.

    The interpreter has as many threads as torch. Copies and pickles load the file again.

    Args:
        input_name: of the image; other inputs, which must be text, get none.
        output_name: of the tensor to read.

    Raises:
        ImportError: no ai-edge-litert.
        ValueError: no .tflite file, or one without these tensors in these shapes.
    """

    def __init__(
        self,
        path: Path,
        input_name: str,
        input_shape: tuple[int, ...],
        output_name: str,
        output_shape: tuple[int, ...],
    ) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ModuleNotFoundError as error:
            raise ImportError(f"{path} needs ai-edge-litert: pip install salcap[litert]") from error
        self._arguments = (path, input_name, input_shape, output_name, output_shape)
        content = path.read_bytes()
        if content[4:8] != b"TFL3":
            raise ValueError(f"{path} is no .tflite file: bytes 4 to 8 are {content[4:8]!r}, expected b'TFL3'")
        try:
            content = _with_output(content, output_name)
            self._interpreter = Interpreter(model_content=content, num_threads=torch.get_num_threads())
            self._interpreter.allocate_tensors()
        except Exception as error:  # a damaged file raises whatever its bytes lead to
            raise ValueError(f"{path} cannot be read by LiteRT: {error}") from error
        inputs = {detail["name"]: detail for detail in self._interpreter.get_input_details()}
        outputs = {detail["name"]: detail for detail in self._interpreter.get_output_details()}
        self._input = _tensor(path, "input", inputs, input_name, input_shape)
        self._output = _tensor(path, "output", outputs, output_name, output_shape)
        for detail in inputs.values():
            if detail["dtype"] is np.bytes_:
                self._interpreter.set_tensor(detail["index"], np.array(b"", dtype=object))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Run on one float32 image of the input's shape."""
        self._interpreter.set_tensor(self._input, image)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output)


def _with_output(content: bytes, name: str) -> bytes:
    """The same network with tensor ``name`` as its first output.

    Keeping all inner tensors, the interpreter's own way to read one, takes five times the memory and twenty times as
    long to start.
    """
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.Model.GetRootAs(content, 0).Subgraphs(0)
    names = [graph.Tensors(index).Name() for index in range(graph.TensorsLength())]
    if name.encode() not in names or not graph.OutputsLength():
        raise ValueError(f"it has no output, or no tensor {name!r}")
    outputs_offset = graph._tab.Vector(graph._tab.Offset(_OUTPUTS_SLOT))
    index = names.index(name.encode()).to_bytes(4, "little")
    return content[:outputs_offset] + index + content[outputs_offset + 4 :]


_OUTPUTS_SLOT = 8  # of a SubGraph's table in the TF Lite schema: tensors 4, inputs 6, outputs 8


def _tensor(path: Path, role: str, details: dict[str, Any], name: str, shape: tuple[int, ...]) -> int:
    found = {key: (tuple(detail["shape"].tolist()), detail["dtype"]) for key, detail in details.items()}
    if found.get(name) != (shape, np.float32):
        described = ", ".join(f"{key!r} {kind.__name__} {sides}" for key, (sides, kind) in found.items())
        raise ValueError(f"{path} must have {role} {name!r} float32 {shape}, it has {described}")
    return int(details[name]["index"])
