"""Token arrays on disk and the batches made of them. Owns shapes and mixing; knows neither the wording of dialogues
nor the model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training import tokenizer as tokens
from training.dialogues import Dialogue
from training.parallel import ALONE, Ranks

BATCH_TOKENS = 3072
"""Of one rank's share of a step."""
WIDTHS = (256, 384, 512, 640, 768, 1024, 2048)
"""Row widths that get a compiled step each; a dialogue goes into the narrowest that holds it."""
TARGET_SHARE = 0.6
"""Room for positions with a loss, as a share of a batch: a fixed number gives the compiled loss one shape a width."""


@dataclass(frozen=True)
class Batch:
    """ids [B, T], and for the N positions with a loss: `at` (index into the flattened hidden states), `target` and
    `weight` (0 for padding).
    """

    ids: Tensor
    at: Tensor
    target: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Corpus:
    """Encoded conversations laid end to end; conversation i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray

    @classmethod
    def encode(cls, tokenizer: PreTrainedTokenizerFast, dialogues: Iterator[Dialogue]) -> "Corpus":
        """All dialogues that fit the context."""
        encoded = [tokens.encode(tokenizer, d.messages, d.tools) for d in dialogues]
        return cls.of([pair for pair in encoded if len(pair[0]) <= tokens.MAX_LENGTH])

    @classmethod
    def of(cls, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> "Corpus":
        """Of each conversation's ids and weights."""
        offsets = np.cumsum([0] + [len(ids) for ids, _ in rows])
        return cls(np.concatenate([ids for ids, _ in rows]), np.concatenate([weights for _, weights in rows]), offsets)

    def save(self, path: Path) -> None:
        with path.open("wb") as file:  # given a path, numpy would choose the suffix itself
            np.savez(file, ids=self.ids, weights=self.weights, offsets=self.offsets)

    @classmethod
    def load(cls, path: Path) -> "Corpus":
        with np.load(path) as arrays:
            return cls(arrays["ids"], arrays["weights"], arrays["offsets"])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def only(self, indices: list[int]) -> "Corpus":
        """The corpus of these conversations."""
        return Corpus.of([self[index] for index in indices])

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.ids[span], self.weights[span]


def collate(rows: list[tuple[np.ndarray, np.ndarray]], width: int, pad: int) -> Batch:
    """Rows padded to `width`, losses gathered to the fixed number of positions (the earliest are kept)."""
    ids = np.full((len(rows), width), pad, np.int64)
    weights = np.zeros((len(rows), width), np.float32)
    for row, (row_ids, row_weights) in enumerate(rows):
        ids[row, : len(row_ids)], weights[row, : len(row_ids)] = row_ids, row_weights
    weights = weights[:, 1:]
    room = int(len(rows) * width * TARGET_SHARE)
    row_at, column_at = (index[:room] for index in np.nonzero(weights))
    at, target, weight = np.zeros(room, np.int64), np.zeros(room, np.int64), np.zeros(room, np.float32)
    count = len(row_at)
    at[:count] = row_at * width + column_at
    target[:count], weight[:count] = ids[row_at, column_at + 1], weights[row_at, column_at]
    return Batch(*(torch.from_numpy(array) for array in (ids, at, target, weight)))


def batches(corpus: Corpus, seed: int, pad: int, ranks: Ranks = ALONE) -> Iterator[Batch]:
    """This rank's batches of about BATCH_TOKENS, every conversation at most once a pass, in random order, for ever.

    The ranks of one seed take rows of one width at every step, so that none waits for a wider one.
    """
    rng = np.random.default_rng(seed)
    while True:
        waiting: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {width: [] for width in WIDTHS}
        yielded = False
        for index in rng.permutation(len(corpus)):
            row = corpus[index]
            width = next(width for width in WIDTHS if len(row[0]) <= width)
            waiting[width].append(row)
            if len(waiting[width]) == BATCH_TOKENS // width * ranks.count:
                yielded = True
                yield collate(waiting[width][ranks.rank :: ranks.count], width, pad)
                waiting[width] = []
        if not yielded:
            raise ValueError(f"{len(corpus)} conversations fill no batch of any width for {ranks.count} ranks")


def repeats(vocab: int, digits: list[int], seed: int, width: int = WIDTHS[0], ranks: Ranks = ALONE) -> Iterator[Batch]:
    """Random tokens repeated with a random period: nothing but copying. The loss is on what can be known.

    Half of the rows are made of few tokens (the `digits`, or a handful of others), where the token before does not
    tell what follows and two or three do: that is how phone numbers and names of syllables are copied.
    """
    rng = np.random.default_rng([seed, ranks.rank])
    while True:
        rows = []
        for _ in range(BATCH_TOKENS // width):
            period = int(rng.integers(6, 60))
            draw = rng.random()
            pool = np.asarray(digits) if draw < 0.25 else np.arange(vocab)
            if draw > 0.75:
                pool = rng.choice(vocab, int(rng.integers(6, 40)))
            sequence = np.resize(rng.choice(pool, period), width)
            weights = np.zeros(width, np.float32)
            known = np.arange(period, min(width, period + width // 2))
            weights[known] = 1.0
            rows.append((sequence, weights))
        yield collate(rows, width, 0)
