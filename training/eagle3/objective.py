"""What a head that is unrolled over its own outputs learns, and how much of its drafts would be accepted."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from training.corpus import Corpus
from training.eagle3.rows import STEPS, collate
from training.frozen import FrozenTarget
from training.parallel import ALONE, Ranks, sum_over
from training.precision import autocast
from training.unroll import Rows, Unrolled

STEP_DECAY = 0.8
VALIDATED = 60


class Teacher:
    """The target's states at the taps, and its log-probabilities over the draft vocabulary."""

    def __init__(self, target: FrozenTarget, taps: tuple[int, ...] = ()) -> None:
        """taps: none for heads that read the states behind the final norm."""
        self.target, self.taps = target, taps

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(features [B, T, taps * d], last states [B, T, d]) of ids [B, T]."""
        return self.target.states(ids, self.taps)

    @torch.no_grad()
    def choices(self, last: Tensor, draft_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(probabilities [B, T, draft vocabulary], greedy choice [B, T]) after every token, of its last states."""
        logits = self.target.logits(last).float()
        return logits[..., draft_ids].softmax(-1), logits.argmax(-1)


def run_batch(
    head: Unrolled, teacher: Teacher, ids: Tensor, rows: Rows
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Per step of the unroll, for the rows [B, M]: logits and the target's probabilities over the draft vocabulary,
    the target's greedy choice, and whether the step is learned there.
    """
    with autocast(ids.device.type):
        features, last = teacher(ids)
        logits = head(features, ids, teacher.target.embedding, rows)
        probabilities, best = teacher.choices(last, head.draft_ids)
    batch = torch.arange(len(ids), device=ids.device)[:, None]
    for step, drafted in enumerate(logits):
        at = (rows.at + 1 + step).clamp(max=ids.shape[1] - 1)
        yield drafted.float(), probabilities[batch, at], best[batch, at], rows.valid[..., step]


def training_loss(head: Unrolled, teacher: Teacher, ids: Tensor, rows: Rows) -> Tensor:
    """Weighted mean cross-entropy in nats. Where the target's choice is no draft token, nothing is learned."""
    loss, weights = torch.zeros((), device=ids.device), 0.0
    known = torch.zeros(head.shape.vocab, dtype=torch.bool, device=ids.device)
    known[head.draft_ids] = True
    for step, (drafted, wanted, best, valid) in enumerate(run_batch(head, teacher, ids, rows)):
        learned = valid & known[best]
        losses = (drafted.logsumexp(-1) - (wanted * drafted).sum(-1))[learned]
        loss = loss + STEP_DECAY**step * losses.sum() / learned.sum().clamp(min=1)
        weights += STEP_DECAY**step
    return loss / weights


def acceptance(head: Unrolled, teacher: Teacher, ids: Tensor, rows: Rows) -> Tensor:
    """Counts [steps, 2]: drafts that are the target's choice among those whose earlier steps were, and the latter."""
    counts = torch.zeros(STEPS, 2, device=ids.device)
    alive = torch.ones_like(rows.at, dtype=torch.bool)
    for step, (drafted, _, best, valid) in enumerate(run_batch(head, teacher, ids, rows)):
        alive = alive & valid
        counts[step, 1] += alive.sum()
        alive &= head.draft_ids[drafted.argmax(-1)] == best
        counts[step, 0] += alive.sum()
    return counts


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
        counts += acceptance(head, teacher, ids.to(device), rows.to(device)).cpu()
    right, tried = sum_over(ranks, counts).T.tolist()
    return Accepted(tuple(a / b for a, b in zip(right, tried, strict=True) if b))  # a head may draft fewer positions
