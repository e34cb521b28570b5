"""The head's training loop: schedule, checkpoints, and acceptance on conversations never trained.

`python -m training.eagle3 --target DIR --conversations FILE --held-out FILE.npz --work DIR --out DIR --minutes 20
--ranks 2`; started again with the same `--work` it goes on where it stopped.

Soft cross-entropy against the target's distribution over the draft vocabulary, step i weighed 0.8^i, on the tokens of
replies; later steps go on from the head's own states (training-time test, arXiv 2503.01840).
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from training.corpus import Corpus
from training.eagle3.head import Eagle3Head
from training.eagle3.objective import Teacher, training_loss, validate
from training.eagle3.rows import batches, frequent_ids, load_conversations
from training.llama import Llama, Shape
from training.optimiser import optimisers, rate_at, update
from training.parallel import ALONE, Ranks, launch
from training.unroll import Rows, Unrolled

DRAFT_VOCAB = 1536
PEAK_LR, WARM_UP_STEPS = 1.5e-3, 50
CHECKPOINT_SECONDS, REPORT_SECONDS = 300.0, 30.0


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
        self.teacher, self.head = self.begin(target, draft_ids)
        self.optimisers = optimisers(self.head, muon=True)
        self.work, self.budget, self.seed, self.step, self.spent = work, minutes * 60, seed, 0, 0.0
        self.target = identity(target, draft_ids)
        work.mkdir(parents=True, exist_ok=True)
        if (work / "state.pt").exists():
            self.restore()

    def begin(self, target: Llama, draft_ids: Tensor) -> tuple[Teacher, Unrolled]:
        """What the head learns from, and the head as it starts."""
        layers = target.shape.layers
        taps = (2, layers // 2, layers - 3)
        head = Eagle3Head(target.shape, taps, draft_ids)
        head.begin_like(target)
        return Teacher(target, taps), head

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
        update(self.optimisers, rate_at(PEAK_LR, WARM_UP_STEPS, self.step, self.spent / self.budget))
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


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Of a head's training."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--conversations", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True, help="an encoded corpus, validated on")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1, help="processes, one core each")
    return parser


def main() -> None:
    arguments = argument_parser(__doc__).parse_args()
    launch(train, arguments.ranks, arguments)


if __name__ == "__main__":
    main()
