"""The seam of a pair head: what its weights must offer to draft trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from engine.interfaces import Tap
from engine.models.layers import Rotary, WritesAndAttends


class PairHead(Protocol):
    """One decoder layer over pairs of a state and the token that followed it, and the logits of a draft vocabulary.

    to_target: int64 [draft vocabulary], the target's id of each draft id. taps: the states that ``fuse`` reads.
    """

    to_target: Tensor
    rotary: Rotary

    @property
    def taps(self) -> Sequence[Tap]: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...

    def fuse(self, features: Tensor) -> Tensor:
        """Target states [m, taps, d] to the head's hidden states [m, H]."""
        ...

    def forward(self, tokens: Tensor, hidden: Tensor, kv: Tensor, place: WritesAndAttends) -> Tensor:
        """Outputs [m, H] behind pairs of a state [m, H] and the token [m] (target ids) that followed it.

        Writes the pairs' keys and values to ``place``. kv: [2, slots, kv_heads, head_dim].
        """
        ...

    def predict(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Of outputs [m, H]: (log-probabilities [m, draft vocabulary], hidden states [m, H] fed to the next level).

        noise: float [draft vocabulary], or a row of it for each output, added to the logits before they are made
        log-probabilities.
        """
        ...
