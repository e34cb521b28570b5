"""Conversations as the rows that drafts of a pair head begin at. Owns batching; knows no model."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from training.corpus import Corpus
from training.parallel import ALONE, Ranks
from training.unroll import Rows

STEPS = 6
BATCH_TOKENS = 1536


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
        yielded = False
        for pool in np.array_split(order, len(order) // 256 + 1):
            groups: list[list[int]] = [[]]
            for index in pool[np.argsort(lengths[pool], kind="stable")]:
                if groups[-1] and (len(groups[-1]) + 1) * lengths[index] > BATCH_TOKENS:
                    groups.append([])
                groups[-1].append(index)
            left_out = rng.integers(len(groups) % ranks.count + 1)  # not always the longest
            for step in rng.permutation(len(groups) // ranks.count):
                yielded = True
                yield collate([corpus[index] for index in groups[left_out + step * ranks.count + ranks.rank]])
        if not yielded:
            raise ValueError(f"{len(corpus)} conversations make no batch for each of {ranks.count} ranks")


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
