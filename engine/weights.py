"""Streams tensors out of safetensors files, one at a time, straight to the device and dtype wanted."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from engine.errors import ModelError
from engine.models.config import read_json

_PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INDEX = "model.safetensors.index.json"


def pack(matrix: Tensor) -> Tensor:
    """The same matrix [out, in], laid out in memory as products with few rows read it fastest.

    On a CPU in float32, that is transposed: windows of 8 to 24 nodes gain 20 to 35 %, single tokens lose nothing (in
    bfloat16 they would).
    """
    if matrix.device.type == "cpu" and matrix.dtype in (torch.float32, torch.float64):
        return matrix.t().contiguous().t()
    return matrix


class TensorSource(Protocol):
    """Gives tensors by their names in a checkpoint, in the dtype and on the device that are wanted."""

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor: ...
    def merge(self, names: list[str], shapes: list[tuple[int, ...]]) -> Tensor:
        """Several, stacked along their first dimension."""
        ...


class Weights:
    """The tensors of one checkpoint directory, single-file or sharded.

    Each tensor is read once, converted and given up, so host memory stays near one shard. ``take`` notes what was used;
    ``unused`` says what a loader has left behind. Use as a context manager.
    """

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._directory = directory
        self._dtype = dtype
        self._device = device
        self._files: dict[str, Any] = {}
        self._shard_of = self._index()
        self._taken: set[str] = set()

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.clear()

    @property
    def names(self) -> set[str]:
        return set(self._shard_of)

    def unused(self) -> set[str]:
        return self.names - self._taken

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor, in the wanted dtype on the device. ModelError where it is missing, has another shape, or is
        quantised: without its scales it would be another one."""
        tensor = self.raw(name, shape)
        if tensor.dtype not in _PLAIN:
            raise ModelError(f"{self._directory}: {name} is {tensor.dtype}, which nothing in the config explains")
        return tensor.to(self._dtype)

    def raw(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """The tensor on the device as it is stored. ModelError where it is missing or has another shape."""
        if name not in self._shard_of:
            raise ModelError(f"{self._directory}: tensor {name} is missing")
        self._taken.add(name)
        shard = self._shard_of[name]
        try:
            tensor: Tensor = self._open(shard).get_tensor(name)
        except SafetensorError as error:
            raise ModelError(f"{self._directory / shard} cannot give {name}, which {INDEX} says it holds") from error
        if shape is not None and tuple(tensor.shape) != shape:
            raise ModelError(f"{self._directory}: {name} has shape {tuple(tensor.shape)}, {shape} was expected")
        return tensor.to(self._device)

    def merge(self, names: list[str], shapes: list[tuple[int, ...]]) -> Tensor:
        """Several tensors stacked along their first dimension, without holding two copies of the whole."""
        merged = torch.empty(sum(s[0] for s in shapes), *shapes[0][1:], dtype=self._dtype, device=self._device)
        start = 0
        for name, shape in zip(names, shapes, strict=True):
            merged[start : start + shape[0]] = self.take(name, shape)
            start += shape[0]
        return merged

    def _index(self) -> dict[str, str]:
        """Tensor name to file name."""
        if (self._directory / INDEX).exists():
            shards = read_json(self._directory / INDEX).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                raise ModelError(f"{self._directory / INDEX} has no weight_map from tensors to files")
            for shard in sorted(set(shards.values())):
                if not (self._directory / shard).exists():
                    raise ModelError(f"{self._directory}: shard {shard} is missing")
            return shards
        if not (self._directory / "model.safetensors").exists():
            raise ModelError(f"{self._directory} holds neither model.safetensors nor {INDEX}")
        return dict.fromkeys(self._open("model.safetensors").keys(), "model.safetensors")

    def _open(self, shard: str) -> Any:
        if shard not in self._files:
            self._files.clear()  # one mapped shard at a time: weights come layer by layer, and layers rarely straddle
            try:
                self._files[shard] = safe_open(self._directory / shard, "pt")
            except Exception as error:
                raise ModelError(f"{self._directory / shard} cannot be read: {error}") from error
        return self._files[shard]


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name, safetensors or what ``torch.save`` wrote. Raises ModelError where it holds
    anything else; nothing in it is run.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises what it likes
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise ModelError(f"{path} does not hold tensors by name")
    return {str(name): tensor for name, tensor in loaded.items()}
