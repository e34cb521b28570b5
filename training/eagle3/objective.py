"""What a head that is unrolled over its own outputs learns, and how much of its drafts would be accepted."""

from collections.abc import Iterator

import torch
from torch import Tensor

from training.corpus import Corpus
from training.eagle3.rows import STEPS, collate
from training.llama import Llama
from training.parallel import Ranks, sum_over
from training.unroll import Rows, Unrolled

STEP_DECAY = 0.8
VALIDATED = 60


class Teacher:
    """The target's states at the taps, and its log-probabilities over the draft vocabulary."""

    def __init__(self, target: Llama, taps: tuple[int, ...]) -> None:
        self.target, self.taps = target, taps

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(features [B, T, taps * d], last states [B, T, d]) of ids [B, T]."""
        model = self.target.model
        cos, sin = model.cos[: ids.shape[1]], model.sin[: ids.shape[1]]
        x, states = model.embed_tokens(ids), []
        for index, layer in enumerate(model.layers):
            if index in self.taps:
                states.append(x)
            x = layer(x, cos, sin)
        return torch.cat(states, -1), model.norm(x)

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
    with torch.autocast("cpu", torch.bfloat16):
        features, last = teacher(ids)
        logits = head(features, ids, teacher.target.model.embed_tokens.weight, rows)
        probabilities, best = teacher.choices(last, head.draft_ids)
    batch = torch.arange(len(ids))[:, None]
    for step, drafted in enumerate(logits):
        at = (rows.at + 1 + step).clamp(max=ids.shape[1] - 1)
        yield drafted.float(), probabilities[batch, at], best[batch, at], rows.valid[..., step]


def training_loss(head: Unrolled, teacher: Teacher, ids: Tensor, rows: Rows) -> Tensor:
    """Weighted mean cross-entropy in nats. Where the target's choice is no draft token, nothing is learned."""
    loss, weights = torch.zeros(()), 0.0
    known = torch.zeros(head.shape.vocab, dtype=torch.bool)
    known[head.draft_ids] = True
    for step, (drafted, wanted, best, valid) in enumerate(run_batch(head, teacher, ids, rows)):
        learned = valid & known[best]
        losses = (drafted.logsumexp(-1) - (wanted * drafted).sum(-1))[learned]
        loss = loss + STEP_DECAY**step * losses.sum() / learned.sum().clamp(min=1)
        weights += STEP_DECAY**step
    return loss / weights


def acceptance(head: Unrolled, teacher: Teacher, ids: Tensor, rows: Rows) -> Tensor:
    """Counts [steps, 2]: drafts that are the target's choice among those whose earlier steps were, and the latter."""
    counts = torch.zeros(STEPS, 2)
    alive = torch.ones_like(rows.at, dtype=torch.bool)
    for step, (drafted, _, best, valid) in enumerate(run_batch(head, teacher, ids, rows)):
        alive = alive & valid
        counts[step, 1] += alive.sum()
        alive &= head.draft_ids[drafted.argmax(-1)] == best
        counts[step, 0] += alive.sum()
    return counts


@torch.no_grad()
def validate(head: Unrolled, teacher: Teacher, corpus: Corpus, ranks: Ranks) -> str:
    """Conditional acceptance by position of a greedy chain on conversations as written, and what it would emit."""
    counts = torch.zeros(STEPS, 2)
    for index in range(ranks.rank, min(VALIDATED, len(corpus)), ranks.count):
        ids, rows = collate([corpus[index]])
        counts += acceptance(head, teacher, ids, rows)
    counts = sum_over(ranks, counts)
    rate = counts[:, 0] / counts[:, 1].clamp(min=1)
    tau = 1 + float(rate[:4].cumprod(0).sum())
    return f"accepted by position {' '.join(f'{r:.3f}' for r in rate.tolist())}; chain of 4 emits {tau:.2f} a forward"
