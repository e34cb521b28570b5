"""What a head that is unrolled over its own outputs learns, and how much of its drafts would be accepted.

Logits are the largest tensors of all by far: they are never there for more than a chunk of positions.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from training.corpus import Corpus
from training.eagle3.rows import STEPS, collate
from training.frozen import FrozenTarget
from training.parallel import ALONE, Ranks, sum_over
from training.precision import autocast
from training.unroll import Rows, Unrolled

STEP_DECAY = 0.8
VALIDATED = 60
CHUNK = 2**24
"""Logits of the target at a time, 64 MB in fp32: 131 positions of a vocabulary of 128,000. A chunk holds some three
tensors of so many for the target and for each step.
"""


class Teacher:
    """The target's states at the taps, and its probabilities over the draft vocabulary."""

    def __init__(self, target: FrozenTarget, taps: tuple[int, ...] = ()) -> None:
        """taps: none for heads that read the states behind the final norm."""
        self.target, self.taps = target, taps

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(features [B, T, taps * d], last states [B, T, d]) of ids [B, T]."""
        return self.target.states(ids, self.taps)

    @torch.no_grad()
    def choices(self, last: Tensor, draft_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(probabilities [n, draft vocabulary], greedy choice [n]) after tokens with these last states [n, d]."""
        logits = self.target.logits(last).float()
        return logits[..., draft_ids].softmax(-1), logits.argmax(-1)


@dataclass(frozen=True)
class Chunk:
    """Some positions of a batch, and the drafts whose steps guess the target's choice there.

    positions: int64 [C], among the B * T. guesses: of each step (drafts int64 [G], among the B * M; where its position
    stands in `positions` [G]).
    """

    positions: Tensor
    guesses: list[tuple[Tensor, Tensor]]


def chunks_of(rows: Rows, length: int, steps: int, size: int) -> list[Chunk]:
    """All that the first `steps` steps learn of a batch of T = `length`, `size` positions at a time; one at least.

    By positions, not by drafts: up to `steps` drafts guess a position, and its logits are made once for all.
    """
    device = rows.at.device
    first = torch.arange(len(rows.at), device=device)[:, None] * length + rows.at + 1
    drafts, step = rows.valid[..., :steps].flatten(0, 1).nonzero(as_tuple=True)
    positions, where = (first.flatten()[drafts] + step).unique(return_inverse=True)
    chunks = []
    for start in range(0, max(1, len(positions)), size):
        inside = (where >= start) & (where < start + size)
        of_step = [inside & (step == number) for number in range(steps)]
        guesses = [(drafts[own], where[own] - start) for own in of_step]
        chunks.append(Chunk(positions[start : start + size], guesses))
    return chunks


class Batch:
    """A batch that a head was unrolled over, and the chunks in which its logits are made."""

    def __init__(self, head: Unrolled, teacher: Teacher, ids: Tensor, rows: Rows) -> None:
        self.head, self.teacher, self.device = head, teacher, ids.device.type
        with autocast(self.device):
            features, last = teacher(ids)
            states = head(features, ids, teacher.target.embedding, rows)
        self._last, self._states = last.flatten(0, 1), [state.flatten(0, 1) for state in states]
        self.steps = len(states)
        self.chunks = chunks_of(rows, ids.shape[1], self.steps, max(1, CHUNK // head.shape.vocab))

    def choices(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """The target's probabilities [C, draft vocabulary] and greedy choice [C]."""
        with autocast(self.device):
            return self.teacher.choices(self._last[chunk.positions], self.head.draft_ids)

    def logits(self, step: int, drafts: Tensor) -> Tensor:
        """The head's [G, draft vocabulary] of a step of some drafts."""
        with autocast(self.device):
            rows = self.head.output_rows(step, self.teacher.target)
            return F.linear(self._states[step][drafts], rows).float()


def training_loss(head: Unrolled, teacher: Teacher, ids: Tensor, rows: Rows) -> Tensor:
    """Weighted mean cross-entropy in nats. Where the target's choice is no draft token, nothing is learned."""
    batch = Batch(head, teacher, ids, rows)
    known = torch.zeros(head.shape.vocab, dtype=torch.bool, device=ids.device)
    known[head.draft_ids] = True

    def nats_and_counts(chunk: Chunk) -> Tensor:
        """[steps, 2]: cross-entropy and number of what each step learns."""
        wanted, best = batch.choices(chunk)
        found = []
        for step, (drafts, where) in enumerate(chunk.guesses):
            learned = known[best[where]]
            drafted, likely = batch.logits(step, drafts[learned]), wanted[where[learned]]
            nats = drafted.logsumexp(-1) - (likely * drafted).sum(-1)
            found.append(torch.stack([nats.sum(), learned.sum()]))
        return torch.stack(found)

    if len(batch.chunks) == 1:
        total = nats_and_counts(batch.chunks[0])
    else:  # a chunk's logits are thrown away, and made again for the gradient
        options = {"use_reentrant": False, "preserve_rng_state": False}
        total = torch.stack([checkpoint(nats_and_counts, chunk, **options) for chunk in batch.chunks]).sum(0)
    weights = STEP_DECAY ** torch.arange(len(total), device=ids.device)
    return (weights * total[:, 0] / total[:, 1].clamp(min=1)).sum() / weights.sum()


def acceptance(head: Unrolled, teacher: Teacher, ids: Tensor, rows: Rows) -> Tensor:
    """Counts [steps, 2]: drafts that are the target's choice among those whose earlier steps were, and the latter."""
    batch = Batch(head, teacher, ids, rows)
    valid = rows.valid[..., : batch.steps].flatten(0, 1)
    right = torch.zeros_like(valid)
    for chunk in batch.chunks:
        _, best = batch.choices(chunk)
        for step, (drafts, where) in enumerate(chunk.guesses):
            right[drafts, step] = head.draft_ids[batch.logits(step, drafts).argmax(-1)] == best[where]
    accepted = right.long().cumprod(-1)
    tried = valid * torch.cat([torch.ones_like(accepted[:, :1]), accepted[:, :-1]], -1)
    return torch.stack([accepted.sum(0), tried.sum(0)], -1)


@dataclass(frozen=True)
class Accepted:
    """Of greedy chains on conversations as written. rates: of each position, given that those before were accepted."""

    rates: tuple[float, ...]

    @property
    def per_forward(self) -> float:
        """Tokens that a chain of four brings for each of the target's forwards."""
        return 1.0 + float(torch.tensor(self.rates[:4]).cumprod(0).sum())

    def __str__(self) -> str:
        rates = " ".join(f"{rate:.3f}" for rate in self.rates)
        return f"accepted by position {rates}; chain of 4 emits {self.per_forward:.2f} a forward"


@torch.no_grad()
def validate(head: Unrolled, teacher: Teacher, corpus: Corpus, ranks: Ranks = ALONE) -> Accepted:
    """What would be accepted of drafts along the first VALIDATED conversations, shared out over the ranks."""
    counts = torch.zeros(STEPS, 2)
    device = teacher.target.embedding.device
    for index in range(ranks.rank, min(VALIDATED, len(corpus)), ranks.count):
        ids, rows = collate([corpus[index]])
        found = acceptance(head, teacher, ids.to(device), rows.to(device)).cpu()
        counts[: len(found)] += found  # a head may draft fewer positions
    right, tried = sum_over(ranks, counts).T.tolist()
    return Accepted(tuple(a / b for a, b in zip(right, tried, strict=True) if b))
