"""Reads a Hugging Face ``config.json`` into what a decoder needs, and refuses by name what it cannot serve."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ModelError


@dataclass(frozen=True)
class Family:
    """What sets one architecture apart from the others: data, not code."""

    qkv_bias: bool = False
    qk_norm: bool = False


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(),
    "MistralForCausalLM": Family(),
    "Qwen2ForCausalLM": Family(qkv_bias=True),
    "Qwen3ForCausalLM": Family(qk_norm=True),
}


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a dense decoder, in transformers' names."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_positions: int
    rope: Mapping[str, Any]
    tied: bool
    qkv_bias: bool
    output_bias: bool
    qk_norm: bool


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ModelError where it is missing or broken."""
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise ModelError(f"cannot read {path.name} in {path.parent}: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return value


def rope_parameters(config: Mapping[str, Any], default_theta: float = 10_000.0) -> dict[str, Any]:
    """RoPE settings, wherever a version of transformers wrote them: ``rope_parameters``, or ``rope_scaling`` with
    ``rope_theta`` beside it or inside it."""
    settings = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    settings.setdefault("rope_theta", config.get("rope_theta") or default_theta)
    return settings


def read_config(directory: Path) -> DecoderConfig:
    """The decoder in ``directory``. Raises ModelError for an architecture or a feature that is not supported."""
    config = read_json(directory / "config.json")
    names = config.get("architectures") or ["(none)"]
    family = FAMILIES.get(names[0])
    if family is None:
        raise ModelError(f"architecture {names[0]} is not supported; these are: {', '.join(FAMILIES)}")
    _refuse_unsupported(config)
    try:
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        return DecoderConfig(
            architecture=names[0],
            vocab_size=int(config["vocab_size"]),
            hidden_size=hidden,
            intermediate_size=int(config["intermediate_size"]),
            num_layers=int(config["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            rms_norm_eps=float(config["rms_norm_eps"]),
            max_positions=int(config["max_position_embeddings"]),
            rope=rope_parameters(config),
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=family.qkv_bias or bool(config.get("attention_bias", False)),
            output_bias=not family.qkv_bias and bool(config.get("attention_bias", False)),
            qk_norm=family.qk_norm,
        )
    except KeyError as error:
        raise ModelError(f"config.json in {directory} lacks {error.args[0]}") from error


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    """Features that would change the text if they were ignored."""
    window = config.get("sliding_window")
    uses_window = config.get("use_sliding_window", True)
    if window is not None and uses_window and int(window) < int(config.get("max_position_embeddings", 0)):
        raise ModelError(f"sliding-window attention (sliding_window {window}) is not supported")
    if config.get("hidden_act", "silu") != "silu":
        raise ModelError(f"activation {config['hidden_act']} is not supported; silu is")
    if config.get("mlp_bias"):
        raise ModelError("biases in the MLP (mlp_bias) are not supported")
    if config.get("quantization_config"):
        raise ModelError("quantised checkpoints (quantization_config) are not supported yet")
