"""How a checkpoint says that its weights are quantised: what is served, and what is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.errors import ModelError

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Scheme:
    """kind: dtype of the weights. scale: name of their scales beside the matrix.

    block: (rows, inputs) that share one; None where a row or the whole matrix has one.
    """

    kind: torch.dtype
    scale: str = "weight_scale"
    block: tuple[int, int] | None = None

    @staticmethod
    def ignores(name: str) -> bool:
        """Scales of activations and of keys and values, which are not quantised here: nothing is lost without them."""
        return name.endswith((".input_scale", ".k_scale", ".v_scale"))


def read_scheme(config: Mapping[str, Any], path: Path) -> Scheme | None:
    """The scheme in a ``config.json``, None where there is none. Raises ModelError by name for what is not served."""
    found = config.get("quantization_config")
    if not found:
        return None
    method = found.get("quant_method")
    if method == "fp8":
        block = found.get("weight_block_size")
        if block is None:
            return Scheme(FP8)
        return Scheme(FP8, "weight_scale_inv", (int(block[0]), int(block[1])))
    if method != "compressed-tensors":
        raise ModelError(f"{path}: quantisation by {method!r} is not supported; fp8 and compressed-tensors are")
    groups = list((found.get("config_groups") or {}).values())
    if len(groups) != 1:
        raise ModelError(f"{path}: {len(groups)} groups of quantised weights are not supported; one is")
    return _compressed(groups[0].get("weights") or {}, found, path)


def _compressed(weights: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> Scheme:
    bits, kind, strategy = (weights.get(key) for key in ("num_bits", "type", "strategy"))
    if bits != 8 or kind not in ("float", "int") or found.get("format") in ("pack-quantized", "marlin-24"):
        raise ModelError(f"{path}: weights of {bits} bits ({kind}) are not supported; 8 bits are")
    if weights.get("symmetric") is False:
        raise ModelError(f"{path}: weights with zero points (symmetric false) are not supported")
    if strategy not in ("tensor", "channel", "block"):
        raise ModelError(f"{path}: scales by {strategy!r} are not supported; tensor, channel and block are")
    block = weights.get("block_structure") if strategy == "block" else None
    return Scheme(FP8 if kind == "float" else torch.int8, block=None if block is None else (block[0], block[1]))
