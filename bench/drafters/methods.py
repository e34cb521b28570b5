"""Which ways of drafting are compared, and what each of them adds to its target."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

NGRAM = "5-gram table"


@dataclass(frozen=True)
class Method:
    """spec: the engine's name for it, with its checkpoint; empty for the 5-gram table. model: directory of its target.
    checkpoint: what was trained for it, if anything was.
    """

    name: str
    spec: str
    model: Path
    checkpoint: Path | None = None

    @property
    def parameters(self) -> int:
        """That drafting adds to the target's."""
        return sum(_tensor_sizes(file) for file in self._files)

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self._files)

    @property
    def training_minutes(self) -> float | None:
        """As the trainer noted them beside the checkpoint."""
        note = self.checkpoint / "training.json" if self.checkpoint else None
        return float(json.loads(note.read_text())["minutes"]) if note and note.exists() else None

    @property
    def _files(self) -> list[Path]:
        return sorted(self.checkpoint.glob("*.safetensors")) if self.checkpoint else []


def _tensor_sizes(file: Path) -> int:
    with safe_open(file, "pt") as tensors:
        slices = (tensors.get_slice(name) for name in tensors.keys())  # noqa: SIM118 (it is no mapping)
        shapes = [part.get_shape() for part in slices if part.get_dtype() in ("BF16", "F16", "F32")]
    sizes = []
    for shape in shapes:
        size = 1
        for length in shape:
            size *= length
        sizes.append(size)
    return sum(sizes)


def methods(model: Path) -> list[Method]:
    """All of them for one target: what needs no checkpoint, and what lies in its directory."""
    found = [
        Method("self-speculation", "suffix", model),
        Method("token recycling", "recycling", model),
        Method("self-speculation + recycling", "suffix+recycling", model),
        Method(NGRAM, "", model),
    ]
    trained = {"medusa": "Medusa", "mtp": "MTP", "draft": "draft model", "eagle3": "EAGLE-3"}
    for kind, name in trained.items():
        if (model / kind).is_dir():
            found.append(Method(name, f"{kind}:{model / kind}", model, model / kind))
    if (model / "eagle3").is_dir():
        head = model / "eagle3"
        found.append(Method("self-speculation + EAGLE-3", f"suffix+eagle3:{head}", model, head))
    return found
