"""The EAGLE-3 head as it is trained: a decoder layer over [embedding, hidden state] and a reduced vocabulary.

Owns the parameters and the published file layout (`midlayer.*`); the unrolled forward is `training.unroll`'s.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.frozen import FrozenTarget
from training.llama import MLP, Attention, RMSNorm, Shape
from training.unroll import Rows, Unrolled

__all__ = ["Eagle3Head", "Rows"]


class Midlayer(nn.Module):
    """A decoder layer whose attention reads [embedding, hidden state]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.hidden_norm = RMSNorm(shape.hidden, shape.norm_eps)
        self.input_layernorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.self_attn = Attention(shape, 2 * shape.hidden)
        self.mlp = MLP(shape)


class Eagle3Head(Unrolled):
    """The trained parameters. `taps`: places of the target's residual stream that are fused (input of layer i).

    The layer is a plain Llama's of the target's sizes, as EAGLE's own heads have it, whatever the target is.
    """

    def __init__(self, shape: Shape, taps: tuple[int, ...], draft_ids: Tensor) -> None:
        super().__init__(shape.plain, draft_ids)
        self.taps = taps
        self.fc = nn.Linear(len(taps) * shape.hidden, shape.hidden, bias=False)
        self.midlayer = Midlayer(shape.plain)
        self.norm = RMSNorm(shape.hidden, shape.norm_eps)
        self.lm_head = nn.Linear(shape.hidden, len(draft_ids), bias=False)
        self.draw()

    @torch.no_grad()
    def begin_like(self, target: FrozenTarget) -> None:
        """Start from the target: its output rows, its last norm, and the topmost fused state passed through."""
        size = self.shape.hidden
        self.fc.weight[:, -size:] += torch.eye(size)
        self.norm.weight.copy_(target.model.norm.weight)
        self.lm_head.weight.copy_(target.lm_head.weight[self.draft_ids])

    @torch.no_grad()
    def begin_from(self, other: "Eagle3Head") -> None:
        """Start from a trained head; of the output rows, from those of the tokens that both draft."""
        for name, weight in self.named_parameters():
            if name != "lm_head.weight":
                weight.copy_(other.get_parameter(name))
        row = {token: at for at, token in enumerate(other.draft_ids.tolist())}
        shared = [(at, row[token]) for at, token in enumerate(self.draft_ids.tolist()) if token in row]
        ours, theirs = (torch.tensor(rows, dtype=torch.long) for rows in zip(*shared, strict=True))
        self.lm_head.weight[ours] = other.lm_head.weight[theirs]

    @classmethod
    def load(cls, directory: Path, shape: Shape) -> "Eagle3Head":
        """A head that `save` wrote. Raises ValueError for other layouts and shapes."""
        try:
            config = json.loads((directory / "config.json").read_text())
            tensors = load_file(directory / "model.safetensors")
            draft_ids = tensors.pop("d2t") + torch.arange(config["draft_vocab_size"])
            tensors.pop("t2d", None)
            head = cls(shape, tuple(config["eagle_aux_hidden_state_layer_ids"]), draft_ids)
            head.load_state_dict({name: value.float() for name, value in tensors.items()})
        except (OSError, KeyError, RuntimeError) as error:
            raise ValueError(f"{directory} holds no head of this trainer for this target: {error}") from error
        return head

    @property
    def layer(self) -> nn.Module:
        return self.midlayer

    def fuse(self, features: Tensor) -> Tensor:
        return self.fc(features)

    def join(self, embedded: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.midlayer
        return torch.cat([layer.input_layernorm(embedded), layer.hidden_norm(hidden)], -1), hidden

    def close(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.norm(x), x

    def output_rows(self, step: int, target: FrozenTarget) -> Tensor:
        return self.lm_head.weight

    def config(self) -> dict[str, Any]:
        """`config.json` in the layout of SpecForge: top-level layer ids are those whose input is tapped."""
        kept = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
        kept += ("hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta", "vocab_size")
        shape = self.shape.config()
        return {
            "architectures": ["LlamaForCausalLMEagle3"],
            "model_type": "llama",
            **{key: shape[key] for key in kept},
            "num_hidden_layers": 1,
            "draft_vocab_size": len(self.draft_ids),
            "eagle_aux_hidden_state_layer_ids": list(self.taps),
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }

    def save(self, directory: Path) -> None:
        """The published layout: `midlayer.*`, `d2t` (offsets, int64 [draft]) and `t2d` (bool [vocabulary])."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().bfloat16().contiguous() for name, value in self.named_parameters()}
        draft_ids = self.draft_ids.cpu()
        tensors["d2t"] = draft_ids - torch.arange(len(draft_ids))
        tensors["t2d"] = torch.zeros(self.shape.vocab, dtype=torch.bool)
        tensors["t2d"][draft_ids] = True
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        (directory / "model.safetensors").chmod(0o644)
        (directory / "config.json").write_text(json.dumps(self.config(), indent=2) + "\n")
