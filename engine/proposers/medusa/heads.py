"""The weights of Medusa heads and their one forward. Knows no tree and no session."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.models.decoder import Decoder
from engine.proposers.medusa.checkpoint import Layout, Source
from engine.weights import pack


class Heads:
    """All heads of one checkpoint, beside their target. Raises ModelError for tensors of another shape."""

    def __init__(self, source: Source, layout: Layout, target: Decoder) -> None:
        self._blocks = [_take_blocks(source, head, layout.blocks, target) for head in range(layout.heads)]
        self._outputs: list[Tensor] | None = None
        if layout.own_output:
            shape = (target.vocab_size, target.config.hidden_size)
            self._outputs = [pack(source.take(f"{i}.{layout.blocks}.weight", shape)) for i in range(layout.heads)]
        self._shared_output = target.lm_head_weight
        self.vocab_size = target.vocab_size

    def __len__(self) -> int:
        return len(self._blocks)

    def log_probs(self, state: Tensor, count: int, noise: Tensor | None = None) -> Tensor:
        """float [count, V]: what the first ``count`` heads say behind a state [1, H].

        noise: float [levels, V], row i added to the logits of head i.
        """
        hidden = []
        for blocks in self._blocks[:count]:
            x = state
            for weight, bias in blocks:
                x = x + F.silu(F.linear(x, weight, bias))
            hidden.append(x)
        if self._outputs is None:
            logits = F.linear(torch.cat(hidden), self._shared_output).float()
        else:
            own = zip(hidden, self._outputs[:count], strict=True)
            logits = torch.cat([F.linear(x, output) for x, output in own]).float()
        if noise is not None:
            levels = min(count, noise.shape[0])
            logits[:levels] += noise[:levels]
        return logits.log_softmax(-1)


def _take_blocks(source: Source, head: int, count: int, target: Decoder) -> list[tuple[Tensor, Tensor]]:
    """(weight [H, H], bias [H]) of each of a head's residual blocks.

    Published code repeats one block (``[ResBlock(...)] * n``), which its files then hold n times: it is applied n
    times, but held once.
    """
    size = target.config.hidden_size
    blocks: list[tuple[Tensor, Tensor]] = []
    for block in range(count):
        weight = source.take(f"{head}.{block}.linear.weight", (size, size))
        bias = source.take(f"{head}.{block}.linear.bias", (size,))
        if blocks and torch.equal(weight, blocks[-1][0]) and torch.equal(bias, blocks[-1][1]):
            blocks.append(blocks[-1])
        else:
            blocks.append((pack(weight), bias))
    return blocks
