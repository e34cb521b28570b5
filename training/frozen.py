"""The target that a head is trained for: a causal language model of transformers that the engine serves, frozen. Owns
loading it and what a head reads of it; knows no head and no data.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from engine.errors import ModelError
from engine.models.config import read_config
from training.llama import Shape


class FrozenTarget(nn.Module):
    """`model.embed_tokens` and `model.norm` as Hugging Face names them, and the states and logits of whole rows.

    Rows are padded behind their end, where causal attention keeps the padding from what is read.
    """

    def __init__(self, directory: Path, device: str = "cpu") -> None:
        """In fp32 on a CPU, whose autocast computes in bf16, and in bf16 elsewhere. Raises ValueError where the
        directory holds no model that the engine serves, before any weight is read.
        """
        super().__init__()
        self.shape = shape_of(directory)
        logging.disable_progress_bar()  # it would stand among the lines of the run
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).to(device).eval()
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
        """SHA-256 of the weights and of what they are computed with."""
        digest = hashlib.sha256(repr(self.shape).encode())
        for _, weight in sorted(self.state_dict().items()):
            digest.update(weight.flatten().view(torch.uint8).cpu().numpy().tobytes())
        return digest.hexdigest()


def shape_of(directory: Path) -> Shape:
    """The target in `directory`, as the engine reads it: a head's layer has its sizes, an MTP module is such a block.

    Raises ValueError for what the engine does not serve.
    """
    try:
        config = read_config(directory)
    except ModelError as error:
        raise ValueError(f"no drafter can be trained for {directory}: {error}") from error
    scaling = {key: value for key, value in config.rope.items() if key != "rope_theta"}
    return Shape(
        vocab=config.vocab_size,
        hidden=config.hidden_size,
        layers=config.num_layers,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate=config.intermediate_size,
        rope_theta=config.rope["rope_theta"],
        norm_eps=config.rms_norm_eps,
        max_positions=config.max_positions,
        rope_scaling=None if scaling["rope_type"] == "default" else scaling,
        architecture=config.architecture,
        tied=config.tied,
        qkv_bias=config.qkv_bias,
        output_bias=config.output_bias,
        qk_norm=config.qk_norm,
    )
