"""The target that a head is trained for: any causal language model of transformers, frozen. Owns loading it and what a
head reads of it; knows no head and no data.
"""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from training.llama import Shape


class FrozenTarget(nn.Module):
    """`model.embed_tokens` and `model.norm` as Hugging Face names them, and the states and logits of whole rows.

    Rows are padded behind their end, where causal attention keeps the padding from what is read.
    """

    def __init__(self, directory: Path, device: str = "cpu") -> None:
        """In fp32 on a CPU, whose autocast computes in bf16, and in bf16 elsewhere. Raises ValueError where the
        directory holds no model whose head this package can train.
        """
        super().__init__()
        if not (directory / "config.json").is_file():
            raise ValueError(f"{directory} holds no model: config.json is not there")
        logging.disable_progress_bar()  # it would stand among the lines of the run
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).to(device).eval()
        if not hasattr(loaded.base_model, "embed_tokens") or not hasattr(loaded.base_model, "norm"):
            raise ValueError(f"{directory} is a {type(loaded).__name__}, whose layers are not those of a Llama")
        self.shape = shape_of(directory)
        self.model: nn.Module = loaded.base_model
        self.lm_head: nn.Module = loaded.get_output_embeddings()
        self.requires_grad_(False)

    @property
    def embedding(self) -> Tensor:
        """[V, d]."""
        return self.model.embed_tokens.weight

    @torch.no_grad()
    def states(self, ids: Tensor, taps: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
        """(the residual stream as layers ``taps`` read it, side by side [B, T, taps * d], states behind the final norm
        [B, T, d]) of ids [B, T]. Without taps both are the latter.
        """
        out = self.model(ids, output_hidden_states=bool(taps), use_cache=False)
        last = out.last_hidden_state
        return torch.cat([out.hidden_states[tap] for tap in taps], -1) if taps else last, last

    @torch.no_grad()
    def logits(self, last: Tensor) -> Tensor:
        """[..., V] of states behind the final norm [..., d]."""
        return self.lm_head(last)

    def identity(self) -> str:
        """SHA-256 of the weights."""
        digest = hashlib.sha256()
        for _, weight in sorted(self.state_dict().items()):
            digest.update(weight.flatten().view(torch.uint8).cpu().numpy().tobytes())
        return digest.hexdigest()


def shape_of(directory: Path) -> Shape:
    """The sizes in a target's `config.json`: a head's layer has those of the target's."""
    config = json.loads((directory / "config.json").read_text())
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    rope = config.get("rope_parameters") or {}
    return Shape(
        vocab=config["vocab_size"],
        hidden=hidden,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        intermediate=config["intermediate_size"],
        rope_theta=config.get("rope_theta") or rope.get("rope_theta", 10_000.0),
        norm_eps=config["rms_norm_eps"],
        max_positions=config["max_position_embeddings"],
    )
