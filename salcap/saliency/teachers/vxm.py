"""The .vxm container of Twitter's image cropping network: a strict reader.

All integers are unsigned 32-bit little-endian: a magic, the number of entries, then for each its key's length, the key
with a NUL at its end, its value's length, the value. Nothing follows the last.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAGIC = b"\x01tPM"
_CONVOLUTION, _POOLING, _BLUR = 0, 2, 3
_RELU, _LEAKY_RELU = 1, 4


@dataclass(frozen=True)
class Convolution:
    """Cross-correlation with stride 1 and zeros beyond the edges, then a leaky ReLU.

    Attributes:
        weight: (out, in, k, k) float32, k odd; bias: (out,).
        negative_slope: 0 for a plain ReLU.
    """

    weight: np.ndarray
    bias: np.ndarray
    negative_slope: float


@dataclass(frozen=True)
class MaxPooling:
    """Window and stride."""

    window: int


@dataclass(frozen=True)
class Blur:
    """Gaussian over ``taps`` pixels, odd, with standard deviation ``sigma``."""

    taps: int
    sigma: int


Layer = Convolution | MaxPooling | Blur


def read_vxm(path: Path) -> list[Layer]:
    """Read a network's layers, in order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: any departure from the format; the message names the file and the place in it.
    """
    entries = _Entries(path, _read_entries(path))
    layers = [entries.layer(number) for number in range(entries.integer("layerCount"))]
    if not layers:
        raise ValueError(f"{path}: layerCount is 0")
    channels = 3
    for number, layer in enumerate(layers):
        if isinstance(layer, Convolution):
            if layer.weight.shape[1] != channels:
                got = layer.weight.shape[1]
                raise ValueError(f"{path}: layer {number} takes {got} channels, the layer before gives {channels}")
            channels = layer.weight.shape[0]
    if channels != 1:
        raise ValueError(f"{path}: the last layer gives {channels} maps, expected 1")
    return layers


def _read_entries(path: Path) -> dict[str, bytes]:
    content, position = path.read_bytes(), 0

    def take(count: int, what: str) -> bytes:
        nonlocal position
        if count > len(content) - position:
            left = len(content) - position
            raise ValueError(f"{path}: truncated at byte {position}: {what} needs {count} bytes, {left} are left")
        position += count
        return content[position - count : position]

    def take_sized(what: str) -> bytes:
        return take(struct.unpack("<I", take(4, f"the length of {what}"))[0], what)

    if take(4, "the magic") != MAGIC:
        raise ValueError(f"{path} is no .vxm file: it begins with {content[:4]!r}, expected {MAGIC!r}")
    entries: dict[str, bytes] = {}
    number_of_entries = struct.unpack("<I", take(4, "the number of entries"))[0]
    for number in range(number_of_entries):
        start = position
        key = take_sized(f"the key of entry {number}")
        if not key.endswith(b"\0") or not key[:-1].isascii() or b"\0" in key[:-1] or key[:-1].decode() in entries:
            raise ValueError(
                f"{path}: entry {number} at byte {start} has key {key!r}, expected a new text with a final NUL"
            )
        name = key[:-1].decode()
        entries[name] = take_sized(f"the value of {name!r}")
    if position != len(content):
        raise ValueError(f"{path}: {len(content) - position} bytes follow the last entry at byte {position}")
    return entries


class _Entries:
    """Typed access to the entries of one file."""

    def __init__(self, path: Path, entries: dict[str, bytes]) -> None:
        self.path, self.entries = path, entries

    def layer(self, number: int) -> Layer:
        kind = self.integer(f"{number}Type")
        if kind == _CONVOLUTION:
            return self.convolution(number)
        if kind == _POOLING:
            return MaxPooling(self.integer(f"{number}Pool", least=1))
        if kind == _BLUR:
            taps = self.integer(f"{number}KernelSize", least=1)
            if taps % 2 == 0:
                raise ValueError(f"{self.path}: {number}KernelSize must be odd, got {taps}")
            return Blur(taps, self.integer(f"{number}Std", least=1))
        raise ValueError(
            f"{self.path}: {number}Type is {kind}, known: {_CONVOLUTION} (convolution), {_POOLING} (max pooling),"
            f" {_BLUR} (blur)"
        )

    def convolution(self, number: int) -> Convolution:
        weight, bias = self.array(f"{number}w", ndim=4), self.array(f"{number}b", ndim=1)
        out, _, height, width = weight.shape
        if height != width or height % 2 == 0:
            raise ValueError(f"{self.path}: {number}w has kernels of {height}x{width}, expected odd squares")
        if len(bias) != out:
            raise ValueError(f"{self.path}: {number}b has {len(bias)} values for the {out} channels of {number}w")
        activation = self.integer(f"{number}Act")
        if activation not in (_RELU, _LEAKY_RELU):
            raise ValueError(
                f"{self.path}: {number}Act is {activation}, known: {_RELU} (ReLU), {_LEAKY_RELU} (leaky ReLU)"
            )
        slope = float(self.floats(f"{number}alpha", 1)[0]) if activation == _LEAKY_RELU else 0.0
        return Convolution(weight, bias, slope)

    def array(self, key: str, ndim: int) -> np.ndarray:
        shape = struct.unpack(f"<{ndim}I", self.value(f"{key}.shape", 4 * ndim))
        if 0 in shape:
            raise ValueError(f"{self.path}: {key}.shape is {shape}, expected no zero")
        return self.floats(key, math.prod(shape)).reshape(shape)

    def floats(self, key: str, count: int) -> np.ndarray:
        if self.value(f"{key}.dtype") != b"float32":
            raise ValueError(f"{self.path}: {key}.dtype is {self.value(f'{key}.dtype')!r}, expected b'float32'")
        values = np.frombuffer(self.value(key, 4 * count), "<f4").astype(np.float32)
        if not np.isfinite(values).all():
            raise ValueError(f"{self.path}: {key} holds values that are not finite")
        return values

    def integer(self, key: str, least: int = 0) -> int:
        value = int.from_bytes(self.value(key, 4), "little")
        if value < least:
            raise ValueError(f"{self.path}: {key} must be at least {least}, got {value}")
        return value

    def value(self, key: str, num_bytes: int | None = None) -> bytes:
        if key not in self.entries:
            raise ValueError(f"{self.path}: no entry {key!r}")
        value = self.entries[key]
        if num_bytes is not None and len(value) != num_bytes:
            raise ValueError(f"{self.path}: the value of {key!r} has {len(value)} bytes, expected {num_bytes}")
        return value
