"""The head's training loop: data, teacher, schedule, checkpoints, and acceptance on conversations never trained.

`python -m training.eagle3 --target DIR --conversations FILE --held-out FILE.npz --work DIR --out DIR --minutes 20
--ranks 2`; started again with the same `--work` it goes on where it stopped.

Soft cross-entropy against the target's distribution over the draft vocabulary, step i weighed 0.8^i, on the tokens of
replies; later steps go on from the head's own states (training-time test, arXiv 2503.01840).
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from training.corpus import Corpus
from training.dialogues import Dialogue, Split
from training.eagle3.head import Eagle3Head, Rows
from training.llama import Llama, Shape
from training.optimiser import Muon, optimisers
from training.parallel import ALONE, Ranks, launch, sum_over

STEPS, STEP_DECAY = 6, 0.8
DRAFT_VOCAB = 1536
BATCH_TOKENS = 1536
PEAK_LR, MUON_RATE, WARM_UP_STEPS = 1.5e-3, 0.5, 50
CHECKPOINT_SECONDS, REPORT_SECONDS = 300.0, 30.0
VALIDATED = 60


def load_target(directory: Path) -> Llama:
    """The target in fp32, frozen."""
    config = json.loads((directory / "config.json").read_text())
    shape = Shape(
        vocab=config["vocab_size"],
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        intermediate=config["intermediate_size"],
        rope_theta=config["rope_theta"],
        norm_eps=config["rms_norm_eps"],
        max_positions=config["max_position_embeddings"],
    )
    target = Llama(shape)
    target.load_state_dict({name: value.float() for name, value in load_file(directory / "model.safetensors").items()})
    return target.requires_grad_(False)


def load_conversations(path: Path, tokenizer_directory: Path) -> Corpus:
    """JSON lines of `messages` and `tools`, encoded."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    with path.open() as lines:
        parsed = (json.loads(line) for line in lines)
        return Corpus.encode(tokenizer, (Dialogue(d["messages"], d["tools"], (), Split()) for d in parsed))


def frequent_ids(corpus: Corpus, vocab: int, count: int) -> Tensor:
    """The `count` commonest tokens of replies, ascending."""
    counts = np.bincount(corpus.ids[corpus.weights > 0], minlength=vocab)
    return torch.from_numpy(np.sort(np.argsort(-counts, kind="stable")[:count]).astype(np.int64))


def batches(corpus: Corpus, seed: int, ranks: Ranks = ALONE) -> Iterator[tuple[Tensor, Rows]]:
    """(ids [B, T], rows) of about BATCH_TOKENS tokens, conversations of like length together, for ever.

    The ranks of one seed take groups of like length at every step, so that none waits for a longer one.
    """
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(corpus))
        lengths = corpus.offsets[1:] - corpus.offsets[:-1]
        for pool in np.array_split(order, len(order) // 256 + 1):
            groups: list[list[int]] = [[]]
            for index in pool[np.argsort(lengths[pool], kind="stable")]:
                if groups[-1] and (len(groups[-1]) + 1) * lengths[index] > BATCH_TOKENS:
                    groups.append([])
                groups[-1].append(index)
            for step in rng.permutation(len(groups) // ranks.count):
                yield collate([corpus[index] for index in groups[step * ranks.count + ranks.rank]])


def collate(conversations: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Rows]:
    """Padded ids, and the rows at which the token in hand and the next one both belong to a reply."""
    width = max(len(ids) for ids, _ in conversations)
    ids = np.zeros((len(conversations), width), np.int64)
    said = np.zeros((len(conversations), width + STEPS + 2), bool)
    for row, (row_ids, weights) in enumerate(conversations):
        ids[row, : len(row_ids)], said[row, : len(row_ids)] = row_ids, weights > 0
    runs = np.stack([said[:, 1 + i : 1 + i + width] for i in range(STEPS + 1)], -1).cumprod(-1).astype(bool)
    starts = runs[..., 1]  # the root and the token after it
    most = max(1, int(starts.sum(1).max()))
    at = np.zeros((len(conversations), most), np.int64)
    valid = np.zeros((len(conversations), most, STEPS), bool)
    for row in range(len(conversations)):
        found = np.nonzero(starts[row])[0]
        at[row, : len(found)], valid[row, : len(found)] = found, runs[row, found, 1:]
    return torch.from_numpy(ids), Rows(torch.from_numpy(at), torch.from_numpy(valid))


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
    head: Eagle3Head, teacher: Teacher, ids: Tensor, rows: Rows
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


def training_loss(head: Eagle3Head, teacher: Teacher, ids: Tensor, rows: Rows) -> Tensor:
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


def acceptance(head: Eagle3Head, teacher: Teacher, ids: Tensor, rows: Rows) -> Tensor:
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
def validate(head: Eagle3Head, teacher: Teacher, corpus: Corpus, ranks: Ranks) -> str:
    """Conditional acceptance by position of a greedy chain on conversations as written, and what it would emit."""
    counts = torch.zeros(STEPS, 2)
    for index in range(ranks.rank, min(VALIDATED, len(corpus)), ranks.count):
        ids, rows = collate([corpus[index]])
        counts += acceptance(head, teacher, ids, rows)
    counts = sum_over(ranks, counts)
    rate = counts[:, 0] / counts[:, 1].clamp(min=1)
    tau = 1 + float(rate[:4].cumprod(0).sum())
    return f"accepted by position {' '.join(f'{r:.3f}' for r in rate.tolist())}; chain of 4 emits {tau:.2f} a forward"


def identity(target: Llama, draft_ids: Tensor) -> str:
    """Of what a head is trained for: SHA-256 of the target's weights and the draft vocabulary."""
    digest = hashlib.sha256(draft_ids.numpy().tobytes())
    for _, weight in sorted(target.state_dict().items()):
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


class Trainer:
    """One run: head, optimisers, and the seconds it has used of its budget.

    Goes on with what is in `work`, unless that was begun for another target or draft vocabulary.
    """

    def __init__(
        self, target: Llama, draft_ids: Tensor, work: Path, minutes: float, seed: int, ranks: Ranks = ALONE
    ) -> None:
        torch.manual_seed(seed)
        self.ranks, self.clock = ranks, time.monotonic()
        layers = target.shape.layers
        taps = (2, layers // 2, layers - 3)
        self.teacher = Teacher(target, taps)
        self.head = Eagle3Head(target.shape, taps, draft_ids)
        self.head.begin_like(target)
        self.optimisers = optimisers(self.head, muon=True)
        self.work, self.budget, self.seed, self.step, self.spent = work, minutes * 60, seed, 0, 0.0
        self.target = identity(target, draft_ids)
        work.mkdir(parents=True, exist_ok=True)
        if (work / "state.pt").exists():
            self.restore()

    def restore(self) -> None:
        state = torch.load(self.work / "state.pt")
        if state.get("target") != self.target:
            print(f"{self.work} holds a head of another target: starting over", flush=True)
            return
        self.head.load_state_dict(state["head"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.spent = state["step"], state["spent"]

    def checkpoint(self) -> None:
        """Written whole or not at all."""
        self.ranks.check_equal(self.head.parameters())
        if not self.ranks.first:
            return
        state = {
            "target": self.target,
            "head": self.head.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
            "spent": self.spent,
        }
        torch.save(state, self.work / "state.part")
        (self.work / "state.part").replace(self.work / "state.pt")

    def train_step(self, ids: Tensor, rows: Rows) -> float:
        loss = training_loss(self.head, self.teacher, ids, rows)
        loss.backward()
        now = time.monotonic()
        # Rate and end follow from the time: it must be the same on all ranks.
        mean_loss, seconds = self.ranks.average(self.head.parameters(), float(loss.detach()), now - self.clock)
        self.clock = now
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), 0.5)
        rate = PEAK_LR * min(1.0, (self.step + 1) / WARM_UP_STEPS) * max(0.0, 1.0 - self.spent / self.budget)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * MUON_RATE if isinstance(optimiser, Muon) else rate
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        self.spent += seconds
        return mean_loss

    def run(self, corpus: Corpus, held_out: Corpus) -> None:
        """Train until the time is used."""
        source = batches(corpus, self.seed + self.step, self.ranks)
        last_report = last_checkpoint = self.spent
        losses: list[float] = []
        seen = 0
        self.clock = time.monotonic()
        while self.spent < self.budget:
            ids, rows = next(source)
            losses.append(self.train_step(ids, rows))
            seen += ids.numel() * self.ranks.count
            if self.spent - last_report > REPORT_SECONDS:
                rate = seen / (self.spent - last_report)
                self.say(f"{self.spent / 60:5.1f} min  step {self.step}  loss {np.mean(losses):.4f}  {rate:.0f} tok/s")
                losses, seen, last_report = [], 0, self.spent
            if self.spent - last_checkpoint > CHECKPOINT_SECONDS:
                self.keep(held_out)
                last_checkpoint, self.clock = self.spent, time.monotonic()
        self.keep(held_out)

    def keep(self, held_out: Corpus) -> None:
        """Checkpoint, and say how the head does."""
        self.checkpoint()
        self.say(f"  held out: {validate(self.head, self.teacher, held_out, self.ranks)}")

    def say(self, line: str) -> None:
        if self.ranks.first:
            print(line, flush=True)


def train(ranks: Ranks, arguments: argparse.Namespace) -> None:
    """One rank's part of a run; the first writes the head."""
    target = load_target(arguments.target)
    corpus = load_conversations(arguments.conversations, arguments.target)
    draft_ids = frequent_ids(corpus, target.shape.vocab, DRAFT_VOCAB)
    trainer = Trainer(target, draft_ids, arguments.work, arguments.minutes, arguments.seed, ranks)
    said = corpus.ids[corpus.weights > 0]
    trainer.say(
        f"{len(corpus)} conversations, {len(corpus.ids) / 1e6:.1f} M tokens; {len(draft_ids)} draft tokens cover "
        f"{np.isin(said, draft_ids.numpy()).mean():.4f} of what is said"
    )
    trainer.run(corpus, Corpus.load(arguments.held_out))
    if ranks.first:
        trainer.head.save(arguments.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--conversations", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True, help="an encoded corpus, validated on")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1, help="processes, one core each")
    arguments = parser.parse_args()
    launch(train, arguments.ranks, arguments)


if __name__ == "__main__":
    main()
