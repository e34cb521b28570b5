"""Random Medusa heads in the layouts that are published, and the slow, obvious function of theirs to compare with."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.engine.checkpoints import VOCAB

WIDTH = 48


def random_heads(count: int, *, blocks: int = 1, own_output: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """Tensors under Medusa-1's names, float64."""
    g = torch.Generator().manual_seed(seed)

    def r(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64) * 0.3

    tensors = {}
    for head in range(count):
        for block in range(blocks):
            tensors[f"{head}.{block}.linear.weight"] = r(WIDTH, WIDTH)
            tensors[f"{head}.{block}.linear.bias"] = r(WIDTH)
        if own_output:
            tensors[f"{head}.{blocks}.weight"] = r(VOCAB, WIDTH)
    return tensors


def write(directory: Path, tensors: dict[str, Tensor], *, pickled: bool = False, heads: int = 2) -> Path:
    """heads: what the config says."""
    directory.mkdir(parents=True, exist_ok=True)
    if pickled:
        torch.save(tensors, directory / "medusa_lm_head.pt")
    else:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "medusa_lm_head.safetensors"
        )
    config = {"medusa_num_heads": heads, "medusa_num_layers": 1, "base_model_name_or_path": "lmsys/vicuna-7b-v1.3"}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def slow_log_probs(
    tensors: dict[str, Tensor], state: Tensor, *, output: Tensor | None = None, noise: Tensor | None = None
) -> list[Tensor]:
    """What each head says behind the state [H]: log-probabilities [V], float64.

    output: of heads that bring none. noise: row i is added to the logits of head i.
    """
    found = []
    for head in range(len({name.split(".")[0] for name in tensors})):
        x, block = state, 0
        while f"{head}.{block}.linear.weight" in tensors:
            z = tensors[f"{head}.{block}.linear.weight"] @ x + tensors[f"{head}.{block}.linear.bias"]
            x = x + z / (1 + torch.exp(-z))
            block += 1
        own = tensors.get(f"{head}.{block}.weight", output)
        assert own is not None
        logits = own @ x
        if noise is not None and head < len(noise):
            logits = logits + noise[head]
        found.append(logits - logits.exp().sum().log())
    return found
