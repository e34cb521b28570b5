"""Where Medusa heads are published, and how their tensors are called. Knows no forward."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from engine.errors import ModelError
from engine.models.decoder import Decoder
from engine.weights import INDEX, Weights, load_tensors

FILES = ("medusa_lm_head.safetensors", "medusa_lm_head.pt")
"""Of Medusa-1, whose heads are trained beside a frozen model."""
PREFIX = "medusa_head."
"""Of the names of Medusa-2, whose heads are inside the model that was trained with them."""
NAME = re.compile(r"([0-9]+)\.([0-9]+)\.(linear\.weight|linear\.bias|weight)")


class Source(Protocol):
    """The tensors of heads, by Medusa-1's names."""

    @property
    def names(self) -> set[str]: ...
    def take(self, name: str, shape: tuple[int, ...]) -> Tensor: ...


class FileSource:
    """A file of nothing but heads. Tensors are given up as they are taken, so that none is held twice."""

    def __init__(self, path: Path, target: Decoder) -> None:
        self._path = path
        self._dtype, self._device = target.dtype, target.device
        self._tensors = load_tensors(path)

    @property
    def names(self) -> set[str]:
        return set(self._tensors)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._tensors.pop(name)
        if tuple(tensor.shape) != shape:
            raise ModelError(f"{self._path}: {name} has shape {tuple(tensor.shape)}, {shape} was expected")
        return tensor.to(self._device, self._dtype)


class ModelSource(Weights):
    """A whole model's checkpoint, of which only the heads are seen."""

    @property
    def names(self) -> set[str]:
        return {name.removeprefix(PREFIX) for name in super().names if name.startswith(PREFIX)}

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return super().take(PREFIX + name, shape)


def find(directory: Path, target: Decoder) -> Source:
    """The heads at ``directory``. Raises ModelError where there is nothing that could hold any."""
    for name in FILES:
        if (directory / name).exists():
            return FileSource(directory / name, target)
    if any((directory / name).exists() for name in ("model.safetensors", INDEX)):
        return ModelSource(directory, target.dtype, target.device)
    raise ModelError(f"{directory} holds no Medusa heads: neither {' nor '.join(FILES)}, nor a model")


class Layout(NamedTuple):
    """What a checkpoint holds. blocks: residual ones of each head. own_output: each head brings an output matrix."""

    heads: int
    blocks: int
    own_output: bool

    def names(self) -> set[str]:
        parts = [f"{block}.linear.{kind}" for block in range(self.blocks) for kind in ("weight", "bias")]
        if self.own_output:
            parts.append(f"{self.blocks}.weight")
        return {f"{head}.{part}" for head in range(self.heads) for part in parts}


def read_layout(names: set[str], directory: Path) -> Layout:
    """Counted from the names: published configs say 2 heads where 5 are. Raises ModelError where the names are not
    those of such a layout.

    Heads without any output matrix are published too (the second layout of text-generation-inference) and share the
    target's. Where only some lack it, the checkpoint is not whole.
    """
    found = [match.groups() for match in map(NAME.fullmatch, names) if match]
    if not found:
        raise ModelError(f"{directory} holds no Medusa heads: none of its tensors has their names")
    layout = Layout(
        heads=len({head for head, _, _ in found}),
        blocks=len({block for _, block, kind in found if kind != "weight"}),
        own_output=any(kind == "weight" for _, _, kind in found),
    )
    wanted = layout.names()
    problems = [
        f"{kind} tensors: {', '.join(sorted(wrong)[:5])}"
        for kind, wrong in (("missing", wanted - names), ("unexpected", names - wanted))
        if wrong
    ]
    if problems:
        raise ModelError(f"{directory}, Medusa heads: {'; '.join(problems)}")
    return layout
