"""Trains the embedded target. Owns the schedule, the loop, its checkpoints and its log; stops by the clock, so that a
build's length is known.

`python -m training.target --data DIR --out DIR --minutes 55 --ranks 2`; started again with the same `--out` it goes on
where it stopped.
"""

import argparse
import json
import random
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from training.corpus import Batch, Corpus, batches, repeats
from training.files import note, whole
from training.induction import induction_init
from training.llama import Llama, Shape
from training.optimiser import RATE_HELP, optimisers, rate_at, update
from training.parallel import Ranks, launch
from training.precision import autocast
from training.tokenizer import CALL_WEIGHT, END, PAD

PEAK_LR = 1.2e-3
WARM_UP_STEPS = 40
REPEATS_LOSS, DRILLS_LOSS = 0.5, 0.15
"""A lesson of the curriculum ends when the mean loss of its last RECENT batches is below this..."""
REPEATS_UNTIL, DRILLS_UNTIL = 0.08, 0.22
"""...or when this share of the time is over."""
RECENT = 12
DRILL_SHARE, REPEAT_SHARE = 0.15, 0.03
CHECKPOINT_SECONDS, REPORT_SECONDS = 240.0, 30.0
SHAPE = Shape()
"""The embedded target's; the vocabulary is the tokenizer's."""


def weighted_loss(hidden: Tensor, embedding: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean cross-entropy in nats of hidden states [N, d] against target [N]."""
    losses = F.cross_entropy(F.linear(hidden, embedding).float(), target, reduction="none")
    return (losses * weight).sum() / weight.sum()


class Curriculum:
    """First random repeats, then drills, then dialogues with some of both up to the end.

    Copying comes first: a model that meets dialogues before it copies learns to invent values instead. (Measured: with
    three minutes of drills cut short, five minutes of dialogues later no phone number was right.)
    """

    def __init__(
        self, data: Path, vocab: int, digits: list[int], pad: int, seed: int, lesson: int, ranks: Ranks
    ) -> None:
        self.rng = random.Random(seed)  # the same on all ranks: they take the same kind of batch at every step
        self.repeats = repeats(vocab, digits, seed, ranks=ranks)
        self.drills = batches(Corpus.load(data / "drills.npz"), seed, pad, ranks)
        self.dialogues = batches(Corpus.load(data / "train.npz"), seed, pad, ranks)
        self.ranks = ranks
        self.lesson = lesson
        self.losses: deque[float] = deque(maxlen=RECENT)

    def batch(self, progress: float) -> Batch:
        """The next batch at this share of the time."""
        learned = (
            len(self.losses) == RECENT and sum(self.losses) / RECENT < (REPEATS_LOSS, DRILLS_LOSS, 0.0)[self.lesson]
        )
        if learned or progress > (REPEATS_UNTIL, DRILLS_UNTIL, 1.0)[self.lesson]:
            if self.ranks.first:
                print(
                    f"lesson {self.lesson} ends at {progress:.3f} of the time, loss {self.losses[-1]:.3f}", flush=True
                )
            self.lesson += 1
            self.losses.clear()
        draw = self.rng.random()
        if self.lesson == 0 or draw < REPEAT_SHARE:
            return next(self.repeats)
        if self.lesson == 1 or draw < REPEAT_SHARE + DRILL_SHARE:
            return next(self.drills)
        return next(self.dialogues)


@torch.no_grad()
def validate(model: Llama, corpus: Corpus, count: int, end: int) -> str:
    """Loss in nats per token, bits per spoken turn, and the share of tool calls whose every token is the greedy
    choice.
    """
    text_nats = text_tokens = text_turns = calls = right = call_nats = call_tokens = 0.0
    for index in range(count):
        row, weights = corpus[index]
        ids = torch.from_numpy(row.astype(np.int64))
        with autocast():
            logits = model(ids[None])[0, :-1].float()
        losses = F.cross_entropy(logits, ids[1:], reduction="none").numpy()
        wrong = (logits.argmax(-1) != ids[1:]).numpy()
        start = None
        for at in range(len(losses)):
            if weights[at + 1] and start is None:
                start = at
            if start is not None and row[at + 1] == end:
                turn = slice(start, at + 1)
                if weights[at + 1] == CALL_WEIGHT and at > start:
                    calls, right = calls + 1, right + (not wrong[turn].any())
                    call_nats, call_tokens = call_nats + losses[turn].sum(), call_tokens + at + 1 - start
                else:
                    text_turns, text_nats, text_tokens = (
                        text_turns + 1,
                        text_nats + losses[turn].sum(),
                        text_tokens + at + 1 - start,
                    )
                start = None
    return (
        f"text {text_nats / text_tokens:.3f} nats/token, {text_nats / text_turns / np.log(2):.1f} bits/turn; "
        f"calls {call_nats / call_tokens:.4f} nats/token, "
        f"whole call right {right:.0f}/{calls:.0f} = {right / calls:.3f}"
    )


def save_model(model: Llama, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """A Hugging Face directory with bf16 weights."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: value.bfloat16().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)  # the library writes it for its owner alone
    end, pad, begin = (tokenizer.convert_tokens_to_ids(token) for token in (END, PAD, tokenizer.bos_token))
    ids = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": pad}
    config = {**model.shape.config(), **ids, "torch_dtype": "bfloat16"}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (directory / "generation_config.json").write_text(json.dumps({**ids, "do_sample": False}, indent=2) + "\n")
    tokenizer.save_pretrained(directory)


class Trainer:
    """One training run: model, optimisers, and the seconds it has used of its budget."""

    def __init__(
        self,
        data: Path,
        out: Path,
        minutes: float,
        muon: bool,
        seed: int,
        ranks: Ranks,
        shape: Shape = SHAPE,
        rate: float = PEAK_LR,
    ) -> None:
        torch.manual_seed(seed)
        self.out, self.budget, self.seed, self.ranks, self.rate = out, minutes * 60, seed, ranks, rate
        self.tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
        self.pad, self.end = (self.tokenizer.convert_tokens_to_ids(token) for token in (PAD, END))
        self.model = Llama(replace(shape, vocab=len(self.tokenizer)))
        induction_init(self.model, seed)
        self.trained = self.begin()
        self.optimisers = optimisers(self.trained, muon)
        self.validation = {name: Corpus.load(data / f"{name}.npz") for name in ("valid", "valid_held")}
        self.data, self.step, self.spent, self.lesson = data, 0, 0.0, 0
        self.clock = time.monotonic()
        self.hidden = torch.compile(self.model.model, dynamic=False)
        self.loss = torch.compile(weighted_loss, dynamic=False)
        out.mkdir(parents=True, exist_ok=True)
        if (out / "state.pt").exists():
            self.restore()

    def begin(self) -> nn.Module:
        """Everything that is trained: the model, and in a subclass what is trained with it."""
        return self.model

    def restore(self) -> None:
        state = torch.load(self.out / "state.pt")
        self.trained.load_state_dict(state["trained"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.spent, self.lesson = state["step"], state["spent"], state["lesson"]

    def checkpoint(self) -> None:
        """Everything needed to go on, written whole or not at all, and the model as a Hugging Face directory."""
        self.ranks.check_equal(self.trained.parameters())
        if not self.ranks.first:
            return
        state = {
            "trained": self.trained.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "step": self.step,
            "lesson": self.lesson,
            "spent": self.spent,
        }
        with whole(self.out / "state.pt") as part:
            torch.save(state, part)
        save_model(self.model, self.tokenizer, self.out / "model")
        note(self.out / "model", self.spent, self.step)

    def learning_rate(self) -> float:
        """Of the next step."""
        return rate_at(self.rate, WARM_UP_STEPS, self.step, self.spent / self.budget)

    def loss_of(self, batch: Batch) -> Tensor:
        """Of one batch, in nats."""
        hidden = self.hidden(batch.ids).flatten(0, 1)[batch.at]
        return self.loss(hidden, self.model.model.embed_tokens.weight, batch.target, batch.weight)

    def train_step(self, batch: Batch) -> float:
        """One update from all ranks' batches; returns their mean loss and adds the time since the last to `spent`."""
        with autocast():
            loss = self.loss_of(batch)
        loss.backward()
        now = time.monotonic()
        # Lesson, rate and end follow from these two: they must be the same on all ranks.
        mean_loss, seconds = self.ranks.average(self.trained.parameters(), float(loss.detach()), now - self.clock)
        self.clock = now
        torch.nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        update(self.optimisers, self.learning_rate())
        self.step += 1
        self.spent += seconds
        return mean_loss

    def report(self) -> None:
        """Print how the model does on the validation sets, each rank on its share of them."""
        for name, corpus in list(self.validation.items())[self.ranks.rank :: self.ranks.count]:
            print(f"  {name}: {validate(self.model, corpus, min(60, len(corpus)), self.end)}", flush=True)

    def run(self) -> None:
        """Train until the time is used, then write the final checkpoint."""
        # A fresh order after a restart, so that no dialogue is seen twice before all were seen about once.
        digits = self.tokenizer.convert_tokens_to_ids(list("0123456789"))
        vocab, seed = self.model.shape.vocab, self.seed + self.step
        curriculum = Curriculum(self.data, vocab, digits, self.pad, seed, self.lesson, self.ranks)
        last_report = last_checkpoint = self.spent
        losses: list[float] = []
        seen = 0
        self.clock = time.monotonic()
        while self.spent < self.budget:
            batch = curriculum.batch(self.spent / self.budget)
            losses.append(self.train_step(batch))
            curriculum.losses.append(losses[-1])
            self.lesson = curriculum.lesson
            seen += batch.ids.numel() * self.ranks.count
            if self.spent - last_report > REPORT_SECONDS and self.ranks.first:
                rate = seen / (self.spent - last_report)
                print(
                    f"{self.spent / 60:5.1f} min  step {self.step}  loss {np.mean(losses):.4f}  "
                    f"lr {self.learning_rate():.1e}  {rate:.0f} tok/s",
                    flush=True,
                )
                losses, seen, last_report = [], 0, self.spent
            if self.spent - last_checkpoint > CHECKPOINT_SECONDS:
                self.checkpoint()
                self.report()
                last_checkpoint, self.clock = self.spent, time.monotonic()
        self.checkpoint()
        self.report()


def train(
    ranks: Ranks,
    data: Path,
    out: Path,
    minutes: float,
    muon: bool,
    seed: int,
    shape: Shape = SHAPE,
    trainer: type[Trainer] = Trainer,
    rate: float = PEAK_LR,
) -> None:
    """One rank's part of a run."""
    trainer(data, out, minutes, muon, seed, ranks, shape, rate).run()


def main(description: str | None = __doc__, shape: Shape = SHAPE, trainer: type[Trainer] = Trainer) -> None:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=55.0)
    parser.add_argument("--optimiser", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--rate", type=float, default=PEAK_LR, help=RATE_HELP)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1, help="processes, one core each")
    arguments = parser.parse_args()
    run = (arguments.data, arguments.out, arguments.minutes, arguments.optimiser == "muon", arguments.seed)
    launch(train, arguments.ranks, *run, shape, trainer, arguments.rate)


if __name__ == "__main__":
    main()
