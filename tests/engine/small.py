"""A small target and head for the property tests, and a proposer whose drafts are accepted."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from engine.interfaces import Draft
from engine.models.decoder import Decoder
from engine.proposers.eagle3 import load_eagle3
from engine.proposers.pairs.proposer import PairProposer
from engine.tree import DraftTree
from tests.engine import checkpoints
from tests.engine.loading import load
from tests.engine.oracle import OracleProposer
from tests.engine.proposers import heads

POOL_TOKENS, PAGE_TOKENS = 640, 4  # so small that rewinds give back pages, and that they run out


@cache
def models(dtype: torch.dtype = torch.float64) -> tuple[Decoder, PairProposer]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        checkpoints.write("llama-tied", directory)
        target = load(directory, dtype, pool_tokens=POOL_TOKENS, page_tokens=PAGE_TOKENS)
        head = heads.write(directory / "head", heads.random_head(target.config), heads.head_config(target.config))
        drafter = load_eagle3(head, target, pool_tokens=POOL_TOKENS, page_tokens=PAGE_TOKENS, taps=(1, 2, 4))
        return target, drafter


class Accepted:
    """An EAGLE-3 proposer whose trees are replaced by an oracle's, so that long paths of any shape are accepted.

    replies: by draft, the whole log that the target alone would write.
    """

    name, top_k, noise_levels = "accepted", 0, 0

    def __init__(self, real: PairProposer) -> None:
        self.real, self.taps = real, real.taps
        self.start, self.observe, self.catch_up, self.behind = real.start, real.observe, real.catch_up, real.behind
        self.oracle = OracleProposer(checkpoints.VOCAB, 0)
        self.replies: dict[int, list[int]] = {}

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        trees = self.real.propose(drafts, roots, noise, budget)
        if id(drafts[0]) not in self.replies:
            return trees
        self.oracle.reference = self.replies[id(drafts[0])]
        return self.oracle.propose(drafts, roots, noise, budget)
