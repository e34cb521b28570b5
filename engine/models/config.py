"""Reads a Hugging Face ``config.json`` into what a decoder needs, and refuses by name what it cannot serve."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ModelError
from engine.models.scheme import Scheme, read_scheme


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
    "MiMoForCausalLM": Family(qkv_bias=True),
}

ROPE_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""The types of RoPE that are computed, and the numbers that each needs beside its base."""


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
    scheme: Scheme | None = None
    """How the layers' matrices are quantised in the checkpoint."""


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


def read_number(config: Mapping[str, Any], key: str, path: Path) -> float:
    """A positive number out of the configuration at ``path``; ModelError that names both where there is none."""
    if key not in config:
        raise ModelError(f"{path} lacks {key}")
    try:
        value = float(config[key])
    except (TypeError, ValueError):
        value = 0.0
    if not value > 0:
        raise ModelError(f"{path}: {key} is {config[key]!r}, a positive number was expected")
    return value


def rope_parameters(config: Mapping[str, Any], path: Path, default_theta: float = 10_000.0) -> dict[str, Any]:
    """RoPE settings, wherever a version of transformers wrote them: ``rope_parameters``, or ``rope_scaling`` with
    ``rope_theta`` beside it or inside it.

    Raises ModelError where the type is not supported (``ROPE_KEYS``) or a number that it needs is missing.
    """
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, Mapping):
        raise ModelError(f"{path}: the RoPE settings are {found!r}, an object was expected")
    settings = dict(found)
    settings.setdefault("rope_theta", config.get("rope_theta") or default_theta)
    kind = settings.setdefault("rope_type", settings.get("type", "default"))
    if kind not in ROPE_KEYS:
        raise ModelError(f"{path}: RoPE type {kind!r} is not supported; {', '.join(ROPE_KEYS)} are")
    for key in ("rope_theta", *ROPE_KEYS[kind]):
        settings[key] = read_number(settings, key, path)
    return settings


def read_config(directory: Path) -> DecoderConfig:
    """The decoder in ``directory``. Raises ModelError for an architecture or a feature that is not supported."""
    path = directory / "config.json"
    config = read_json(path)
    names = config.get("architectures") or ["(none)"]
    family = FAMILIES.get(names[0])
    if family is None:
        raise ModelError(f"architecture {names[0]} is not supported; these are: {', '.join(FAMILIES)}")
    _refuse_unsupported(config, path)

    def size(key: str) -> int:
        return int(read_number(config, key, path))

    heads, hidden = size("num_attention_heads"), size("hidden_size")
    return DecoderConfig(
        architecture=names[0],
        vocab_size=size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=size("intermediate_size"),
        num_layers=size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=size("num_key_value_heads") if config.get("num_key_value_heads") else heads,
        head_dim=size("head_dim") if config.get("head_dim") else hidden // heads,
        rms_norm_eps=read_number(config, "rms_norm_eps", path),
        max_positions=size("max_position_embeddings"),
        rope=rope_parameters(config, path),
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family.qkv_bias or bool(config.get("attention_bias", False)),
        output_bias=not family.qkv_bias and bool(config.get("attention_bias", False)),
        qk_norm=family.qk_norm,
        scheme=read_scheme(config, path),
    )


def _refuse_unsupported(config: Mapping[str, Any], path: Path) -> None:
    """Features that would change the text if they were ignored."""
    uses_window = config.get("sliding_window") is not None and config.get("use_sliding_window", True)
    if uses_window:
        window = read_number(config, "sliding_window", path)
        if window < read_number(config, "max_position_embeddings", path):
            raise ModelError(f"sliding-window attention (sliding_window {window:.0f}) is not supported")
    if config.get("hidden_act", "silu") != "silu":
        raise ModelError(f"activation {config['hidden_act']} is not supported; silu is")
    if config.get("mlp_bias"):
        raise ModelError("biases in the MLP (mlp_bias) are not supported")
