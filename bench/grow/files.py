"""Configs and tensors, to and from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.grow.padding import WIDTH_FACTOR

CONFIG, MODEL = "config.json", "model.safetensors"
SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
"""What is multiplied. A head keeps its size, so RoPE and the scale of attention stay."""


def read_config(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / CONFIG).read_text())
    return config


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Floats as float32."""
    return {name: t.float() if t.is_floating_point() else t for name, t in load_file(file).items()}


def grown_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a grown decoder, which may be a target's or a head's: all but its number of layers."""
    grown = config | {key: config[key] * WIDTH_FACTOR for key in SIZES if config.get(key)}
    grown["head_dim"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    grown["rms_norm_eps"] = config["rms_norm_eps"] / WIDTH_FACTOR
    grown.pop("layer_types", None)  # transformers wants one for each layer
    return grown


def write(
    out: Path, config: dict[str, Any], tensors: dict[str, Tensor], dtype: torch.dtype, *, file: str = MODEL
) -> None:
    """Both files of a checkpoint, which will say the dtype that it is in."""
    out.mkdir(parents=True, exist_ok=True)
    said = config | {"torch_dtype": str(dtype).removeprefix("torch.")}
    said.pop("dtype", None)  # transformers' newer name for it
    (out / CONFIG).write_text(json.dumps(said, indent=2) + "\n")
    stored = {name: (t.to(dtype) if t.is_floating_point() else t).contiguous() for name, t in tensors.items()}
    save_file(stored, out / file, metadata={"format": "pt"})
