"""MTP modules (DeepSeek-V3, arXiv 2412.19437, section 2.2): a decoder block of the target's own shape drafts from pairs
of a state and the token that followed it.

One module, applied to its own states, drafts every level. Of a checkpoint that brings more the first is used: only it
was trained on the target's states, and each of the others would serve one level of a draft. Owns the layouts of
checkpoints, the weights and one forward, whose block is the target's. Knows no tree search and no session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.errors import ModelError
from engine.interfaces import Tap
from engine.models.decoder import Decoder, load_layer
from engine.models.layers import Rotary, WritesAndAttends, rms_norm
from engine.proposers.pairs.proposer import PairProposer
from engine.proposers.setup import Setup
from engine.weights import Weights, pack


@dataclass(frozen=True)
class Layout:
    """How a family of checkpoints writes its modules, and what they were trained to read.

    stem: modules are numbered behind it, from 0, or from the target's number of layers where they stand behind_layers.
    embedding_first: the projection reads [embedding, state]. reads_normed: the target's state is the one behind its
    final norm, not the last layer's. feeds_normed: so is the module's own, fed to the next level. names: a family's own
    for what DeepSeek calls otherwise.
    """

    stem: str
    behind_layers: bool
    embedding_first: bool
    reads_normed: bool
    feeds_normed: bool
    names: Mapping[str, str] = field(default_factory=dict)

    def number(self, name: str) -> int | None:
        """Of the module that a tensor belongs to."""
        number = name.removeprefix(self.stem).split(".")[0]
        return int(number) if name.startswith(self.stem) and number.isdigit() else None


LAYOUTS = {
    # vLLM and SGLang give modules of both families the state that the target's model returns, which is normed. SGLang
    # feeds back the module's own normed state for both; vLLM does for MiMo, and for DeepSeek the one before the norm.
    "DeepSeek, GLM": Layout(
        "model.layers.", behind_layers=True, embedding_first=True, reads_normed=True, feeds_normed=True
    ),
    "MiMo": Layout(
        "model.mtp_layers.",
        behind_layers=False,
        embedding_first=False,
        reads_normed=True,
        feeds_normed=True,
        names={
            "enorm.weight": "token_layernorm.weight",
            "hnorm.weight": "hidden_layernorm.weight",
            "eh_proj.weight": "input_proj.weight",
            "shared_head.norm.weight": "final_layernorm.weight",
        },
    ),
}


class ModuleWeights(Weights):
    """The first module of a checkpoint, by DeepSeek's names without their prefix.

    The checkpoint is the module's own, or that of a whole model. Raises ModelError where no layout's module is there.
    """

    def __init__(self, directory: Path, target: Decoder) -> None:
        super().__init__(directory, target.dtype, target.device)
        self._directory = directory
        self._behind = f"model.layers.{target.num_layers}."
        wanted = []
        for layout in LAYOUTS.values():
            self.layout, self._first = layout, target.num_layers if layout.behind_layers else 0
            self._prefix = f"{layout.stem}{self._first}."
            if any(name.startswith(self._prefix) for name in self.names):
                return
            wanted.append(self._prefix)
        raise ModelError(f"{directory} holds no MTP module: no tensor begins with {' or '.join(wanted)}")

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return super().take(self.own(name), shape)

    def shared(self, name: str, targets: Tensor) -> Tensor:
        """The module's own tensor; the target's where it brings none, or a copy, as published modules do."""
        if self.own(name) not in self.names:
            return targets
        own = self.take(name, tuple(targets.shape))
        return targets if torch.equal(own, targets) else own

    def refuse_unused(self) -> None:
        """Ignoring a tensor of the module (a bias, say) would draft with another function than the one trained."""
        whole = "model.embed_tokens.weight" in self.names

        def ignored(name: str) -> bool:
            number = self.layout.number(name)
            if number == self._first:
                return name.endswith("rotary_emb.inv_freq")
            return whole or (number is not None and number > self._first)

        if unused := sorted(name for name in self.unused() if not ignored(name)):
            raise ModelError(f"{self._directory}: unexpected tensors: {', '.join(unused[:5])}")

    def own(self, name: str) -> str:
        """What the checkpoint calls a tensor of the module."""
        name = name.removeprefix(self._behind)
        return self._prefix + self.layout.names.get(name, name)


class Module:
    """A ``PairHead``: one module beside its target, whose heads, eps and RoPE it has.

    vLLM zeroes the embedding of a pair at position 0. Our pairs begin with state 0 and token 1, both real, as they are
    in training, so nothing is masked; a prompt's first pair weighs little either way.

    taps: the state to read, in place of the layout's. Raises ModelError by name for tensors that are missing, of
    another shape, or unknown.
    """

    def __init__(self, weights: ModuleWeights, target: Decoder, taps: Sequence[int] | None = None) -> None:
        config, hidden = target.whole, target.whole.hidden_size
        self._target = target
        self._layout = weights.layout
        self.taps = _taps(weights.layout, target, taps)
        self._embedding_norm = weights.take("enorm.weight", (hidden,))
        self._state_norm = weights.take("hnorm.weight", (hidden,))
        self._projection = pack(weights.take("eh_proj.weight", (hidden, 2 * hidden)))
        self._layer = load_layer(weights, config, config.num_layers)
        self._norm = weights.take("shared_head.norm.weight", (hidden,))
        self._embedding = weights.shared("embed_tokens.weight", target.embedding)
        self._lm_head = pack(weights.shared("shared_head.head.weight", target.lm_head_weight))
        weights.refuse_unused()
        self.to_target = torch.arange(target.vocab_size, device=target.device)
        self.rotary = Rotary(config.rope, config.head_dim, config.max_positions, target.dtype, target.device)

    @property
    def num_kv_heads(self) -> int:
        return self._target.whole.num_kv_heads

    @property
    def head_dim(self) -> int:
        return self._target.whole.head_dim

    def fuse(self, features: Tensor) -> Tensor:
        """The one state [m, H] of the target's [m, 1, H]."""
        return features[:, 0]

    def forward(self, tokens: Tensor, hidden: Tensor, kv: Tensor, place: WritesAndAttends) -> Tensor:
        """Un-normed states [m, H] behind pairs of a state [m, H] and the token [m] that followed it.

        Writes the pairs' keys and values to ``place``. kv: [2, slots, kv_heads, head_dim].
        """
        eps = self._target.config.rms_norm_eps
        embedded = rms_norm(self._embedding[tokens], self._embedding_norm, eps)
        state = rms_norm(hidden, self._state_norm, eps)
        joined = (embedded, state) if self._layout.embedding_first else (state, embedded)
        return self._target.block(F.linear(torch.cat(joined, -1), self._projection), self._layer, kv, place)

    def predict(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(log-probabilities [m, V], states [m, H] to feed to the next level).

        noise: float [V] or [m, V], added to the logits.
        """
        normed = rms_norm(x, self._norm, self._target.config.rms_norm_eps)
        logits = F.linear(normed, self._lm_head).float()
        if noise is not None:
            logits = logits + noise
        return logits.log_softmax(-1), normed if self._layout.feeds_normed else x


def _taps(layout: Layout, target: Decoder, taps: Sequence[int] | None) -> tuple[Tap]:
    if taps is None:
        return ("norm" if layout.reads_normed else target.num_layers,)
    if len(taps) != 1 or not 0 <= taps[0] <= target.num_layers:
        raise ModelError(
            f"an MTP module reads one state of a target with {target.num_layers} layers; taps {tuple(taps)} do not fit"
        )
    return (taps[0],)


def load(path: Path | None, setup: Setup) -> PairProposer:
    """The module at ``path``, or inside the target's own checkpoint. Raises ModelError by name where it does not fit.

    setup.taps is the state to read in place of the family's: (number of layers,) for the one before the final norm.
    """
    weights = ModuleWeights(path or setup.model, setup.target)
    with weights:
        module = Module(weights, setup.target, setup.taps)
    return PairProposer(
        "mtp",
        module,
        pool_tokens=setup.pool_tokens,
        page_tokens=setup.page_tokens,
        source=setup.source,
        chain=setup.chain,
    )
