"""The EAGLE-3 head: one decoder layer over [embedding, hidden], and the logits of a reduced vocabulary.

Owns weights and one forward. Knows no tree search and no session.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.errors import ModelError
from engine.models.decoder import Decoder
from engine.models.layers import HeadNorms, Rotary, WritesAndAttends, linear, rms_norm, swiglu
from engine.proposers.eagle3.checkpoint import HeadConfig
from engine.weights import pack


class Head:
    """Weights of one head beside its target's embedding.

    to_target: int64 [draft vocabulary], the target's id of each draft id (published as offsets, ``d2t``).
    tensors: as ``read_head`` gives them; taken out one by one, so that none is held twice. Raises ModelError by name
    for those that are missing, of another shape, or unknown.
    """

    def __init__(self, config: HeadConfig, tensors: dict[str, Tensor], target: Decoder, directory: Path) -> None:
        self.config = config
        self._tensors = tensors  # emptied here: what is left belongs to no part of a head
        self._directory = directory
        self._dtype, self._device = target.dtype, target.device
        hidden, heads, kv_heads = config.hidden_size, config.num_heads, config.num_kv_heads
        q_rows, kv_rows = heads * config.head_dim, kv_heads * config.head_dim
        self._fc = pack(self._take("fc.weight", (hidden, len(config.taps) * target.config.hidden_size)))
        self._input_norm = None
        if "input_norm.weight" in tensors:
            self._input_norm = self._take("input_norm.weight", (self._fc.shape[1],))
        self._fc_norm = self._stacked_fc_norm(target.config.hidden_size)
        self._hidden_norm = self._take("hidden_norm.weight", (hidden,))
        self._embedding_norm = self._take("input_layernorm.weight", (hidden,))
        rows = {"q": q_rows, "k": kv_rows, "v": kv_rows}
        self._qkv = pack(
            torch.cat([self._take(f"self_attn.{name}_proj.weight", (n, 2 * hidden)) for name, n in rows.items()])
        )
        self._head_norms = None
        if "self_attn.q_norm.weight" in tensors:
            query, key = (self._take(f"self_attn.{name}_norm.weight", (config.head_dim,)) for name in "qk")
            self._head_norms = HeadNorms(query, key, config.rms_norm_eps)
        self._output = pack(self._take("self_attn.o_proj.weight", (hidden, q_rows)))
        self._mlp_norm = self._take("post_attention_layernorm.weight", (hidden,))
        gate = self._take("mlp.gate_proj.weight", (None, hidden))
        inner = gate.shape[0]
        self._gate_up = pack(torch.cat([gate, self._take("mlp.up_proj.weight", (inner, hidden))]))
        self._down = pack(self._take("mlp.down_proj.weight", (hidden, inner)))
        self._norm = self._take("norm.weight", (hidden,))
        self._embedding = self._embedding_of(target)
        self._lm_head = self._lm_head_of(target)
        self.to_target = self._vocabulary(target.vocab_size)
        self._refuse_unused()
        self.rotary = Rotary(config.rope, config.head_dim, target.config.max_positions, self._dtype, self._device)

    @property
    def taps(self) -> tuple[int, ...]:
        return self.config.taps

    @property
    def num_kv_heads(self) -> int:
        return self.config.num_kv_heads

    @property
    def head_dim(self) -> int:
        return self.config.head_dim

    def fuse(self, features: Tensor) -> Tensor:
        """Target states [m, taps, d] to the head's hidden states [m, H]."""
        if self._fc_norm is not None:
            eps = self.config.rms_norm_eps
            features = torch.stack(
                [rms_norm(features[:, tap], weight, eps) for tap, weight in enumerate(self._fc_norm)], 1
            )
        flat = features.flatten(1)
        if self._input_norm is not None:
            flat = rms_norm(flat, self._input_norm, self.config.rms_norm_eps)
        return F.linear(flat, self._fc)

    def forward(self, tokens: Tensor, hidden: Tensor, kv: Tensor, place: WritesAndAttends) -> Tensor:
        """Hidden states [m, H] behind pairs of a state [m, H] and the token [m] (target ids) that followed it.

        Writes the pairs' keys and values to ``place``. kv: [2, slots, kv_heads, head_dim].
        """
        config, eps = self.config, self.config.rms_norm_eps
        normed = rms_norm(hidden, self._hidden_norm, eps)
        residual = normed if config.norm_before_residual else hidden
        embedded = rms_norm(self._embedding[tokens], self._embedding_norm, eps)
        qkv = linear(torch.cat([embedded, normed], -1), self._qkv).view(tokens.shape[0], -1, config.head_dim)
        query = place.write(qkv, self._head_norms, kv)
        x = residual + linear(place.attend(query, kv), self._output)
        return x + swiglu(rms_norm(x, self._mlp_norm, eps), self._gate_up, self._down)

    def predict(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(log-probabilities [m, draft vocabulary], hidden states [m, H] to feed to the next level).

        noise: float [draft vocabulary] or [m, draft vocabulary], added to the logits.
        """
        normed = rms_norm(x, self._norm, self.config.rms_norm_eps)
        logits = F.linear(normed, self._lm_head).float()
        if noise is not None:
            logits = logits + noise
        return logits.log_softmax(-1), normed if self.config.feed_normed else x

    def _take(self, name: str, shape: tuple[int | None, ...]) -> Tensor:
        """The tensor, out of those that are left. shape: None stands for any size."""
        if name not in self._tensors:
            raise ModelError(f"{self._directory}: tensor {name} is missing")
        tensor = self._tensors.pop(name)
        if len(shape) != tensor.dim() or any(n not in (None, m) for n, m in zip(shape, tensor.shape, strict=True)):
            raise ModelError(f"{self._directory}: {name} has shape {tuple(tensor.shape)}, {shape} was expected")
        return tensor.to(self._device, self._dtype)

    def _refuse_unused(self) -> None:
        """Ignoring a tensor (a bias, say) would draft with another function than the one that was trained.

        t2d is d2t the other way round, a verifier's tensors are the target's own, and inv_freq is in the config.
        """
        unused = sorted(
            name
            for name in self._tensors
            if name != "t2d" and not name.startswith("verifier_") and not name.endswith("inv_freq")
        )
        if unused:
            raise ModelError(f"{self._directory}: unexpected tensors: {', '.join(unused[:5])}")
        self._tensors.clear()

    def _stacked_fc_norm(self, target_hidden: int) -> list[Tensor] | None:
        if "fc_norm.0.weight" not in self._tensors:
            return None
        return [self._take(f"fc_norm.{tap}.weight", (target_hidden,)) for tap in range(len(self.config.taps))]

    def _embedding_of(self, target: Decoder) -> Tensor:
        if "embed_tokens.weight" in self._tensors:
            return self._take("embed_tokens.weight", (target.vocab_size, self.config.hidden_size))
        if target.config.hidden_size != self.config.hidden_size:
            raise ModelError(
                f"{self._directory}: the head is {self.config.hidden_size} wide and brings no embedding, "
                f"the target's has {target.config.hidden_size}"
            )
        return target.embedding

    def _lm_head_of(self, target: Decoder) -> Tensor:
        if "lm_head.weight" in self._tensors:
            return pack(self._take("lm_head.weight", (None, self.config.hidden_size)))
        if target.config.hidden_size != self.config.hidden_size:
            raise ModelError(f"{self._directory}: tensor lm_head.weight is missing")
        return target.lm_head_weight

    def _vocabulary(self, target_vocab: int) -> Tensor:
        size = self._lm_head.shape[0]
        offsets = self._tensors.pop("d2t", None)
        if offsets is None:
            if size != target_vocab:
                raise ModelError(
                    f"{self._directory}: the head speaks {size} tokens, the target {target_vocab}, and d2t is missing"
                )
            return torch.arange(size, device=self._device)
        if offsets.shape != (size,):
            raise ModelError(f"{self._directory}: d2t maps {offsets.numel()} tokens, lm_head has {size}")
        ids = torch.arange(size) + offsets.long().cpu()
        if int(ids.min()) < 0 or int(ids.max()) >= target_vocab or len(set(ids.tolist())) != size:
            raise ModelError(
                f"{self._directory}: d2t leads outside the target's {target_vocab} tokens, or twice to one"
            )
        return ids.to(self._device)
