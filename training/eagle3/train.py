"""Trains an EAGLE-3 head for a target of transformers, on the conversations of its agent.

`python -m training.eagle3 --target DIR --conversations FILE.jsonl`; started again with the same `--work` it goes on
where it stopped. A file has one JSON object a line: `messages` and, where there are any, `tools`, as
`apply_chat_template` takes them. One conversation in twenty is held out: acceptance by position is measured on those,
before and after. The head is written in the published layout (`midlayer.*`, `d2t`, `t2d`), which other engines load
too; `--init` goes on from such a head.

Soft cross-entropy against the target's distribution over the draft vocabulary, step i weighed 0.8^i, on the tokens of
replies; later steps go on from the head's own states (training-time test, arXiv 2503.01840).
"""

import argparse
import hashlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training import conversations
from training.corpus import Corpus
from training.eagle3.head import Eagle3Head
from training.eagle3.objective import Accepted, Teacher, training_loss, validate
from training.eagle3.rows import batches, frequent_ids
from training.files import note, whole
from training.frozen import FrozenTarget
from training.optimiser import RATE_HELP, optimisers, rate_at, update
from training.parallel import ALONE, Ranks, launch
from training.unroll import Rows, Unrolled

PEAK_LR, WARM_UP_STEPS = 1.5e-3, 50
CUSTOMARY = "; for large ones 5e-5 (EAGLE's own traineagle3) to 1e-4 (SpecForge) are customary, with AdamW alone"
CHECKPOINT_SECONDS, REPORT_SECONDS = 300.0, 30.0


def identity(target: FrozenTarget, draft_ids: Tensor, arguments: argparse.Namespace) -> str:
    """Of what a head is trained for, on and with: the target's weights, the draft vocabulary, the file of
    conversations, the learning rate, the head that it began as and, of Medusa, how many heads.
    """
    found = hashlib.sha256(target.identity().encode() + draft_ids.numpy().tobytes())
    if arguments.conversations is not None:
        found.update(arguments.conversations.read_bytes())
    own = [getattr(arguments, name, None) for name in ("init", "heads")]
    found.update(f"{arguments.max_length} {arguments.rate} {own}".encode())
    return found.hexdigest()


class Trainer:
    """One run: head, optimisers, and the seconds it has used of its budget.

    Goes on with what is in `work`, unless that was begun otherwise (`identity`).
    """

    def __init__(
        self, target: FrozenTarget, draft_ids: Tensor, arguments: argparse.Namespace, ranks: Ranks = ALONE
    ) -> None:
        """arguments: `work`, `minutes`, `rate`, `seed`, `conversations`, `max_length`, and for EAGLE-3 `init`."""
        torch.manual_seed(arguments.seed)
        self.arguments, self.ranks, self.clock = arguments, ranks, time.monotonic()
        self.teacher, self.head = self.begin(target, draft_ids)
        self.device = target.embedding.device
        self.head.to(self.device)
        self.optimisers = optimisers(self.head, muon=True)
        self.work, self.budget, self.seed = arguments.work, arguments.minutes * 60, arguments.seed
        self.step, self.spent = 0, 0.0
        self.identity = identity(target, draft_ids, arguments)
        self.work.mkdir(parents=True, exist_ok=True)
        if (self.work / "state.pt").exists():
            self.restore()

    def begin(self, target: FrozenTarget, draft_ids: Tensor) -> tuple[Teacher, Unrolled]:
        """What the head learns from, and the head as it starts."""
        layers = target.shape.layers
        other = Eagle3Head.load(self.arguments.init, target.shape) if self.arguments.init else None
        taps = other.taps if other else (2, layers // 2, layers - 3)
        head = Eagle3Head(target.shape, taps, draft_ids)
        head.begin_like(target)
        if other:
            head.begin_from(other)
        return Teacher(target, taps), head

    def restore(self) -> None:
        state = torch.load(self.work / "state.pt", map_location=self.device)
        if state.get("identity") != self.identity:
            self.say(f"{self.work} holds a run with another target, vocabulary, file or rate: starting over")
            return
        self.head.load_state_dict(state["head"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.spent = state["step"], state["spent"]
        self.say(f"going on after {self.spent / 60:.1f} minutes")

    def checkpoint(self) -> None:
        """Written whole or not at all."""
        self.ranks.check_equal(self.head.parameters())
        if not self.ranks.first:
            return
        state = {
            "identity": self.identity,
            "head": self.head.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
            "spent": self.spent,
        }
        with whole(self.work / "state.pt") as part:
            torch.save(state, part)

    def train_step(self, ids: Tensor, rows: Rows) -> float:
        loss = training_loss(self.head, self.teacher, ids.to(self.device), rows.to(self.device))
        loss.backward()
        now = time.monotonic()
        # Rate and end follow from the time: it must be the same on all ranks.
        mean_loss, seconds = self.ranks.average(self.head.parameters(), float(loss.detach()), now - self.clock)
        self.clock = now
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), 0.5)
        update(self.optimisers, rate_at(self.arguments.rate, WARM_UP_STEPS, self.step, self.spent / self.budget))
        self.step += 1
        self.spent += seconds
        return mean_loss

    def run(self, corpus: Corpus, held_out: Corpus) -> Accepted:
        """Train until the time is used; returns what would be accepted on `held_out`."""
        source = batches(corpus, self.seed + self.step, self.ranks)
        progress = Progress(self.budget, self.spent, self.ranks.first)
        last_checkpoint = self.spent
        self.clock = time.monotonic()
        while self.spent < self.budget:
            ids, rows = next(source)
            loss = self.train_step(ids, rows)
            progress.advance(self.spent, loss, ids.numel() * self.ranks.count)
            if self.spent - last_checkpoint > CHECKPOINT_SECONDS:
                self.checkpoint()
                self.say(f"  held out: {validate(self.head, self.teacher, held_out, self.ranks)}")
                last_checkpoint, self.clock = self.spent, time.monotonic()
        progress.close()
        self.checkpoint()
        accepted = validate(self.head, self.teacher, held_out, self.ranks)
        self.say(f"  held out: {accepted}")
        return accepted

    def note(self, accepted: Accepted) -> None:
        """What the run took and gained, beside the head."""
        if self.ranks.first:
            note(self.arguments.out, self.spent, self.step, accepted=accepted.rates)

    def say(self, line: str) -> None:
        if self.ranks.first:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()


class Progress:
    """A bar over the minutes of a run on a terminal, and a line now and then elsewhere."""

    def __init__(self, budget: float, spent: float, shown: bool) -> None:
        """budget, spent: seconds."""
        self._shown = shown
        form = "{l_bar}{bar}| {n:.1f}/{total:.1f} min{postfix}"
        bar_shown = shown and sys.stderr.isatty()
        self._bar = tqdm(total=budget / 60, initial=spent / 60, bar_format=form, disable=not bar_shown)
        self._said_at, self._losses, self._tokens = spent, [], 0

    def advance(self, spent: float, loss: float, tokens: int) -> None:
        self._losses.append(loss)
        self._tokens += tokens
        self._bar.update(spent / 60 - self._bar.n)
        seconds = spent - self._said_at
        if seconds < (1.0 if not self._bar.disable else REPORT_SECONDS):
            return
        said = f"loss {np.mean(self._losses):.4f}, {self._tokens / seconds:.0f} tok/s"
        self._bar.set_postfix_str(said, refresh=False)
        if self._shown and self._bar.disable:
            print(f"{spent / 60:5.1f} min  {said}", flush=True)
        self._said_at, self._losses, self._tokens = spent, [], 0

    def close(self) -> None:
        self._bar.close()


@dataclass(frozen=True)
class Run:
    """What every head's training begins with."""

    target: FrozenTarget
    corpus: Corpus
    held_out: Corpus

    @classmethod
    def of(cls, arguments: argparse.Namespace, ranks: Ranks) -> "Run":
        target = FrozenTarget(arguments.target, arguments.device)
        longest = min(arguments.max_length, target.shape.max_positions)
        store = arguments.work / "conversations.npz"
        encoded = conversations.load_once(arguments.conversations, arguments.target, longest, store, ranks)
        corpus, held_out = conversations.split(encoded)
        if ranks.first:
            tokens, said = len(encoded.rows.ids) / 1e6, int(encoded.rows.weights.sum()) / 1e6
            print(
                f"{encoded}\n{len(corpus)} rows to train on, {len(held_out)} held out; {tokens:.2f} M tokens, "
                f"{said:.2f} M of them said",
                flush=True,
            )
        return cls(target, corpus, held_out)


def train(ranks: Ranks, arguments: argparse.Namespace) -> None:
    """One rank's part of a run; the first writes the head."""
    run = Run.of(arguments, ranks)
    vocab = run.target.shape.vocab
    draft_ids = frequent_ids(run.corpus, vocab, arguments.draft_vocab or min(32_000, vocab * 3 // 4))
    trainer = Trainer(run.target, draft_ids, arguments, ranks)
    said = run.corpus.ids[run.corpus.weights > 0]
    trainer.say(f"{len(draft_ids)} draft tokens cover {np.isin(said, draft_ids.numpy()).mean():.4f} of what is said")
    if arguments.init:
        begun = Eagle3Head.load(arguments.init, run.target.shape).to(trainer.device)
        before = validate(begun, Teacher(run.target, begun.taps), run.held_out, ranks)
        trainer.say(f"before, with {arguments.init}: {before}")
    elif trainer.step == 0:
        before = validate(trainer.head, trainer.teacher, run.held_out, ranks)
        trainer.say(f"before, untrained: {before}")
    after = trainer.run(run.corpus, run.held_out)
    trainer.say(f"after {trainer.spent / 60:.1f} minutes: {after}")
    if ranks.first:
        trainer.head.save(arguments.out)
        trainer.note(after)
        trainer.say(f"the head is in {arguments.out}; serve it with --drafter eagle3:{arguments.out}")


def argument_parser(description: str | None, customary: str = "") -> argparse.ArgumentParser:
    """Of a head's training. customary: learning rates for a large target, with their sources."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True, help="a causal language model of transformers")
    parser.add_argument("--conversations", type=Path, required=True, help="JSON lines of messages and tools")
    parser.add_argument("--out", type=Path, help="of the head; by default in the target's directory, if it has none")
    parser.add_argument("--work", type=Path, help="of checkpoints; by default OUT.work")
    parser.add_argument("--minutes", type=float, default=20.0)
    suits = "; the default suits a target as small as the embedded one"
    parser.add_argument("--rate", type=float, default=PEAK_LR, help=RATE_HELP + suits + customary)
    parser.add_argument("--max-length", type=int, default=conversations.MAX_LENGTH, help="tokens of a conversation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1, help="processes, one core each")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda with a single rank")
    return parser


def parse(parser: argparse.ArgumentParser, name: str) -> argparse.Namespace:
    """The arguments, with defaults filled in. name: of the head's directory beside the target."""
    arguments = parser.parse_args()
    if arguments.out is None:
        arguments.out = arguments.target / name
        if arguments.out.exists():
            parser.error(f"{arguments.out} is there already; name another place with --out, or this one to replace it")
    arguments.work = arguments.work or arguments.out.with_name(arguments.out.name + ".work")
    if arguments.device != "cpu" and arguments.ranks > 1:
        parser.error("several ranks share the cores of a CPU; an accelerator takes one")
    return arguments


def main() -> None:
    parser = argument_parser(__doc__, CUSTOMARY)
    parser.add_argument("--init", type=Path, help="a head of this trainer to go on from")
    parser.add_argument("--draft-vocab", type=int, help="tokens that the head drafts; by default 3/4, 32,000 at most")
    arguments = parse(parser, "eagle3")
    launch(train, arguments.ranks, arguments)


if __name__ == "__main__":
    main()
