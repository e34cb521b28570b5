"""Reads an EAGLE-3 head's ``config.json`` in the three layouts that are published.

EAGLE and SpecForge write ``midlayer.*``; speculators writes ``layers.0.*`` and nests the layer's shape in
``transformer_layer_config``; EAGLE-3.1 adds ``fc_norm.*`` and feeds the normed output back. Published configs are often
wrong or silent, so whatever the tensors tell is taken from the tensors. Knows no forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.errors import ModelError
from engine.models.config import DecoderConfig, read_json, read_number, rope_parameters
from engine.weights import load_tensors

HEAD_THETA = 10_000.0
"""RoPE base of a head whose config states none: the published ones were trained with transformers' default."""


@dataclass(frozen=True)
class HeadConfig:
    """What the head's forward needs beside its tensors.

    taps: places of the target's residual stream whose states are fused, low to high. norm_before_residual: the residual
    is the normed hidden state. feed_normed: the next level's hidden state is the normed output (EAGLE-3.1).
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: Mapping[str, Any]
    taps: tuple[int, ...]
    norm_before_residual: bool
    feed_normed: bool


def read_head(
    directory: Path,
    target: DecoderConfig,
    *,
    rope_theta: float | None = None,
    taps: tuple[int, ...] | None = None,
) -> tuple[HeadConfig, dict[str, Tensor]]:
    """(config, tensors by EAGLE's names without ``midlayer.``). Overrides win over what the checkpoint says.

    Raises ModelError by name for what is no EAGLE-3 head of this target, and for what its config promises and its
    tensors lack. Whoever takes the tensors refuses those that are left.
    """
    path = directory / "config.json"
    raw = read_json(path)
    tensors = _canonical(_tensors(directory), directory)
    speculators = "transformer_layer_config" in raw or "speculators_model_type" in raw
    nested = raw.get("transformer_layer_config") or {}
    if not isinstance(nested, Mapping):
        raise ModelError(f"{path}: transformer_layer_config is {nested!r}, an object was expected")
    layer = {**raw, **nested}
    for name in ("fc.weight", "self_attn.q_proj.weight", "norm.weight"):
        if name not in tensors:
            raise ModelError(f"{directory} is no EAGLE-3 head: {name} is missing (an EAGLE-1 or -2 head?)")
    for name in ("fc.weight", "self_attn.q_proj.weight"):
        if tensors[name].dim() != 2:
            raise ModelError(f"{directory}: {name} has shape {tuple(tensors[name].shape)}, a matrix was expected")
    for flag, name in (("norm_before_fc", "input_norm.weight"), ("fc_norm", "fc_norm.0.weight")):
        if raw.get(flag) and name not in tensors:
            raise ModelError(f"{path} says {flag}, but tensor {name} is missing")
    if (layer.get("hidden_act") or "silu") != "silu":
        raise ModelError(f"{path}: hidden_act {layer['hidden_act']!r} is not supported; silu is")
    fc = tensors["fc.weight"]
    hidden = fc.shape[0]
    num_taps = fc.shape[1] // target.hidden_size
    if num_taps * target.hidden_size != fc.shape[1] or num_taps < 1:
        raise ModelError(
            f"{directory}: fc reads {fc.shape[1]} features, no multiple of the target's hidden size "
            f"{target.hidden_size}; the head belongs to another target"
        )
    heads, kv_heads = (int(read_number(layer, key, path)) for key in ("num_attention_heads", "num_key_value_heads"))
    if heads % kv_heads:
        raise ModelError(f"{path}: {heads} attention heads do not share {kv_heads} key heads evenly")
    rope = rope_parameters(layer, path, HEAD_THETA)
    if rope_theta is not None:
        rope["rope_theta"] = rope_theta
    chosen = _taps(raw, target.num_layers, num_taps, directory) if taps is None else taps
    if len(chosen) != num_taps or not all(0 <= tap <= target.num_layers for tap in chosen):
        raise ModelError(
            f"{directory}: fc fuses {num_taps} states of a target with {target.num_layers} layers; "
            f"taps {chosen} do not fit"
        )
    return HeadConfig(
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=tensors["self_attn.q_proj.weight"].shape[0] // heads,
        rms_norm_eps=read_number(layer, "rms_norm_eps", path),
        rope=rope,
        taps=chosen,
        # vLLM's importer takes True where a speculators config is silent; EAGLE's own layout means False.
        norm_before_residual=bool(raw.get("norm_before_residual", speculators)),
        # What lm_head reads is normed whatever this says, as in vLLM, SGLang, and SpecForge since its pull request 879.
        feed_normed=bool(raw.get("norm_output", False)),
    ), tensors


def _tensors(directory: Path) -> dict[str, Tensor]:
    path = directory / "model.safetensors"
    if not path.exists():
        path = directory / "pytorch_model.bin"
    if not path.exists():
        raise ModelError(f"{directory} holds neither model.safetensors nor pytorch_model.bin")
    return load_tensors(path)


def _canonical(tensors: dict[str, Tensor], directory: Path) -> dict[str, Tensor]:
    """EAGLE's names, the layer's own without a prefix. The number of layers is counted, never read from the config."""
    layers = {name.split(".")[1] for name in tensors if name.startswith("layers.")}
    if len(layers) > 1:
        raise ModelError(f"{directory}: heads of {len(layers)} layers are not supported; EAGLE-3 heads have one")
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for prefix in ("midlayer.", *(f"layers.{layer}." for layer in layers)):
            if name.startswith(prefix):
                name = name.removeprefix(prefix)
                break
        found[name] = tensor
    return found


def _taps(raw: Mapping[str, Any], num_layers: int, count: int, directory: Path) -> tuple[int, ...]:
    """The residual-stream indices of the fused states.

    At the top of a config an id names the layer that reads the state, which is the residual index itself; inside
    ``eagle_config`` it names the layer that writes it, one less. Both are published in either place: where one reading
    gives EAGLE's own choice, that is it. Silent configs mean EAGLE's own choice.
    """
    default = (2, num_layers // 2, num_layers - 3)
    ids = raw.get("eagle_aux_hidden_state_layer_ids")
    nested = (raw.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
    if listed := ids or nested:
        if not isinstance(listed, list) or not all(isinstance(i, int) for i in listed):
            raise ModelError(f"{directory}: eagle_aux_hidden_state_layer_ids is {listed!r}, numbers were expected")
        read = tuple(listed)
        written = tuple(i + 1 for i in read)
        return default if default in (read, written) else read if ids else written
    if count != 3:
        raise ModelError(f"{directory}: fc fuses {count} states and the config does not say which")
    return default
