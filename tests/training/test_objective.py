"""The loss of unrolled heads: what it is, and that it and acceptance are the same in chunks, without the memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.training.heads import SMALL, corpus, log_probs_of_training, randomise
from training import precision
from training.eagle3 import objective
from training.eagle3.head import Eagle3Head
from training.eagle3.objective import STEP_DECAY, Teacher, acceptance, chunks_of, training_loss
from training.eagle3.rows import STEPS, batches, collate
from training.frozen import FrozenTarget
from training.medusa import Heads
from training.mtp import Module

DRAFT_IDS = torch.arange(0, SMALL.vocab, 2)
HEADS = {
    "eagle3": lambda: (Eagle3Head(SMALL, (2, 4, 5), DRAFT_IDS), (2, 4, 5)),
    "mtp": lambda: (Module(SMALL), ()),
    "medusa": lambda: (Heads(SMALL, 3), ()),
}
FEW = 3
"""Positions to a chunk."""


@pytest.fixture(params=HEADS)
def learner(request, small_target, monkeypatch):
    """(head, teacher, ids, rows), all of it in fp32: in bf16, as where a machine has it, chunks round otherwise."""
    monkeypatch.setattr(precision, "_CPU_HAS_BF16", False)
    head, taps = HEADS[request.param]()
    randomise(head, 1).requires_grad_(True)
    return head, Teacher(FrozenTarget(small_target), taps), *next(batches(corpus(12, 0), seed=0))


def written_out(head, teacher, ids, rows):
    """(loss, acceptance), of all logits at once, draft by draft and step by step."""
    drafted = log_probs_of_training(head, teacher, ids, rows)
    logits = teacher.target.logits(teacher(ids)[1])
    best, wanted = logits.argmax(-1), logits[..., head.draft_ids].softmax(-1)
    steps, learned = drafted.shape[2], head.draft_ids.tolist()
    nats, counts = [[] for _ in range(steps)], torch.zeros(steps, 2, dtype=torch.long)
    for row, places in enumerate(rows.at.tolist()):
        for column, place in enumerate(places):
            alive = True
            for step in range(steps):
                if not rows.valid[row, column, step]:
                    break
                at, guess = place + 1 + step, drafted[row, column, step]
                if int(best[row, at]) in learned:
                    nats[step].append(-(wanted[row, at] * guess).sum())
                counts[step, 1] += alive
                alive = alive and learned[int(guess.argmax())] == int(best[row, at])
                counts[step, 0] += alive
    loss = sum(STEP_DECAY**step * sum(found) / max(1, len(found)) for step, found in enumerate(nats))
    return loss / sum(STEP_DECAY**step for step in range(steps)), counts


@pytest.mark.parametrize("positions", [None, FEW])
def test_loss_gradient_and_acceptance_are_those_of_all_logits_at_once(learner, positions, monkeypatch):
    if positions:
        monkeypatch.setattr(objective, "CHUNK", positions * SMALL.vocab)
    wanted, counts = written_out(*learner)
    loss = training_loss(*learner)
    torch.testing.assert_close(loss, wanted)
    parameters = list(learner[0].parameters())
    for ours, theirs in zip(*(torch.autograd.grad(of, parameters) for of in (loss, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        assert torch.equal(acceptance(*learner), counts)
    assert counts[0, 1] > 50


class Largest(TorchDispatchMode):
    """Notes the most numbers in a tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.numbers = max(self.numbers, *made, 0)
        return out


def test_nothing_is_as_large_as_the_logits_of_all_positions(learner, monkeypatch):
    """A large vocabulary, so that logits are what is large: forward, backward and validation make a chunk of them at a
    time, and what is kept for the backward holds none. What is left is as large as the output rows and their gradient.
    """
    head, teacher, ids, rows = learner
    vocab = 3000
    wide = torch.randn(vocab, SMALL.hidden, requires_grad=True)
    monkeypatch.setattr(head, "output_rows", lambda step, target: wide)
    monkeypatch.setattr(head, "draft_ids", torch.arange(vocab))
    monkeypatch.setattr(head, "shape", SMALL.__class__(vocab=vocab))
    monkeypatch.setattr(teacher.target, "logits", lambda last: last @ wide.detach().T)
    drafts = int(rows.valid[..., 0].sum())
    assert drafts > 30 * FEW

    def largest(chunk):
        monkeypatch.setattr(objective, "CHUNK", chunk)
        kept = []
        keep = torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x)
        with Largest() as seen, keep:
            loss = training_loss(head, teacher, ids, rows)
        with seen:
            loss.backward()
            with torch.no_grad():
                acceptance(head, teacher, ids, rows)
        return seen.numbers, max(shape.numel() if shape[-1:] == (vocab,) else 0 for shape in kept)

    assert largest(2**40) >= (drafts * vocab, drafts * vocab)
    made, kept = largest(FEW * vocab)
    assert made <= wide.numel() < drafts * vocab / 2
    assert kept == 0


def test_chunks_hold_every_learned_guess_once(learner):
    _, _, ids, rows = learner
    chunks = chunks_of(rows, ids.shape[1], STEPS, FEW)
    assert all(len(chunk.positions) == FEW for chunk in chunks[:-1])
    positions = torch.cat([chunk.positions for chunk in chunks])
    assert len(positions.unique()) == len(positions), "the target's logits are made once"
    found = [
        (step, int(draft), int(chunk.positions[place]))
        for chunk in chunks
        for step, guesses in enumerate(chunk.guesses)
        for draft, place in zip(*guesses, strict=True)
    ]
    row, column, step = rows.valid.nonzero(as_tuple=True)
    at = row * ids.shape[1] + rows.at[row, column] + 1 + step
    wanted = zip(step.tolist(), (row * rows.at.shape[1] + column).tolist(), at.tolist(), strict=True)
    assert sorted(found) == sorted(wanted)


def test_a_batch_that_teaches_nothing_has_gradients_all_the_same(learner):
    """Of 0, on every parameter: the ranks average those of all."""
    head, teacher, _, _ = learner
    ids, rows = collate([(corpus(1, 0)[0][0], (corpus(1, 0)[0][1] * 0))])
    loss = training_loss(head, teacher, ids, rows)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(value.grad is not None and not value.grad.any() for value in head.parameters())
