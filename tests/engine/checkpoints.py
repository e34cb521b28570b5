"""Random-weight checkpoints written by transformers, so that loader and forwards have an independent reference."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 211
_SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

CONFIGS: dict[str, PretrainedConfig] = {
    "llama-tied": LlamaConfig(**_SMALL, tie_word_embeddings=True),
    "llama-untied-llama3-rope": LlamaConfig(**_SMALL, tie_word_embeddings=False, rope_parameters=_LLAMA3_ROPE),
    "mistral": MistralConfig(**_SMALL, sliding_window=None, head_dim=16, tie_word_embeddings=False),
    "qwen2-biases": Qwen2Config(**_SMALL, tie_word_embeddings=True),
    "qwen3-qk-norm": Qwen3Config(**_SMALL, head_dim=16, tie_word_embeddings=False),
    "mimo": Qwen2Config(**_SMALL, tie_word_embeddings=False),
}
"""GQA in all; tied and untied; llama3 RoPE; biases; QK-norm; heads times head_dim unlike the width."""

PUBLISHED: dict[str, dict[str, Any]] = {
    "mimo": {"architectures": ["MiMoForCausalLM"], "model_type": "mimo", "attention_bias": True}
}
"""What a family that transformers does not know writes over the config of the one whose forward it has."""


def write(name: str, directory: Path, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Save the named configuration, changed so, with random weights; returns transformers' model of it in float64."""
    torch.manual_seed(seed)
    config = deepcopy(CONFIGS[name])
    config.update(changes)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(("norm.weight", "bias")):  # fresh ones are constant, which would hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(directory)
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | PUBLISHED.get(name, {})))
    return reference
