"""What is captured makes no decision on the host and mixes no devices: a CUDA graph could hold neither.

It is run on tensors that have a device and a shape and no values: whatever looks at a value raises there, and so does
whatever meets a tensor of the host.
"""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor

from bench.gpu import sizes
from engine.graphs.draft import GraphProposer
from engine.graphs.steps import Graphs
from engine.models.decoder import assemble
from engine.proposers.eagle3.head import Head

NOWHERE = torch.device("meta")
SHAPE = sizes.TINY


class NoValues:
    """A ``TensorSource`` of shapes alone."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> None:
        self._dtype = dtype

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=self._dtype, device=NOWHERE)

    def merge(self, names: list[str], shapes: list[tuple[int, ...]]) -> Tensor:
        return torch.cat([self.take(name, shape) for name, shape in zip(names, shapes, strict=True)])


def vocabulary(head: Head, target_vocab: int) -> Tensor:
    """In place of the one that a head looks through when it is loaded."""
    head._tensors.pop("d2t")
    return torch.empty(target_vocab, dtype=torch.long, device=NOWHERE)


@pytest.fixture(scope="module")
def graphs() -> Graphs:
    target = assemble(SHAPE, NoValues(torch.bfloat16, NOWHERE), pool_tokens=2048, kernels="plain")
    with mock.patch.object(sizes, "RandomTensors", NoValues), mock.patch.object(Head, "_vocabulary", vocabulary):
        head = sizes.random_head(target, pool_tokens=2048)
    found = Graphs(target, head, budgets=(8, 24), most_windows=2)
    found.prepare()
    return found


@torch.inference_mode()
def test_forwards(graphs: Graphs) -> None:
    assert len(graphs.target._steps) == 16
    for step in graphs.target._steps.values():
        step.replay()


@torch.inference_mode()
@pytest.mark.parametrize("budget", [8, 24])
def test_drafts_and_cycles(graphs: Graphs, budget: int) -> None:
    assert isinstance(graphs.proposer, GraphProposer)
    static, captured = graphs.proposer.step(budget)
    captured.run()
    assert static.tree.tokens.shape == (budget,)
    cycle = graphs.cycle(budget)
    cycle.replay_draft()
    cycle.replay_verify()


@torch.inference_mode()
def test_what_looks_at_a_value_would_be_found(graphs: Graphs) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        int(graphs.state.length)
    with pytest.raises((RuntimeError, NotImplementedError)):
        graphs.state.length + torch.arange(3)
