"""Random rows over random page tables, for the kernels and for the plain version of the same."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kernels.ops import Choice
from engine.kernels.rows import Rows, pack_bits


@dataclass(frozen=True)
class Case:
    """Windows behind committed positions. parents: of each window's scratch nodes, -1 under the root."""

    rows: Rows
    lengths: list[int]
    computed: list[int]
    parents: list[list[int]]
    tables: list[list[int]]
    slots: int


def random_case(
    rng: random.Random,
    device: torch.device,
    *,
    most_rows: int = 12,
    most_length: int = 150,
    chains: bool = False,
    rows: int | None = None,
    length: int | None = None,
    page_tokens: int | None = None,
) -> Case:
    """Up to three windows; or one of ``rows`` rows behind ``length`` positions, where they are given. page_tokens: any
    where it is not given, and every one is a kernel of its own. All integers are of 64 bits, as forwards have them.
    """
    page = page_tokens or rng.choice([4, 16])
    num_windows = rng.randrange(1, 4) if rows is None else 1
    lengths = [rng.choice([0, 1, page, 63, 64, rng.randrange(most_length)]) for _ in range(num_windows)]
    counts = [rng.randrange(1, most_rows + 1) for _ in range(num_windows)]
    computed = [rng.choice([0, 0, rng.randrange(6)]) for _ in range(num_windows)]
    if rows is not None:
        lengths, counts, computed = [length or 0], [rows], [0]
    needed = [-(-(n + c + r) // page) for n, c, r in zip(lengths, computed, counts, strict=True)]
    free = rng.sample(range(sum(needed) + 5), sum(needed))
    tables = [[free.pop() for _ in range(count)] for count in needed]
    trees = [
        [node - 1 if chains or rng.random() < 0.4 else rng.randrange(-1, node) for node in range(c + r)]
        for c, r in zip(computed, counts, strict=True)
    ]
    width = max(needed) + rng.randrange(3)
    masks = [ancestors_of(tree) for tree in trees]
    words = max(-(-len(tree) // 64) for tree in trees)
    bits = torch.zeros(sum(counts), words, dtype=torch.int64)
    positions, slots, at = [], [], 0
    for number, (known, first, count, mask) in enumerate(zip(lengths, computed, counts, masks, strict=True)):
        packed = pack_bits(mask[first:])
        bits[at : at + count, : packed.shape[1]] = packed
        positions.append(mask[first:].sum(1) - 1 + known)
        places = torch.arange(known + first, known + first + count)
        slots.append(torch.tensor(tables[number])[places // page] * page + places % page)
        at += count
    table = torch.zeros(num_windows, width, dtype=torch.int64)
    for number, pages in enumerate(tables):
        table[number, : len(pages)] = torch.tensor(pages)
    described = Rows(
        positions=torch.cat(positions).to(device),
        slots=torch.cat(slots).to(device),
        tables=table.to(device),
        lengths=torch.tensor(lengths, device=device),
        computed=torch.tensor(computed, device=device),
        starts=torch.tensor([0, *counts]).cumsum(0).to(device),
        ancestors=None if chains else bits.to(device),
        max_rows=max(counts),
        page_tokens=page,
    )
    return Case(described, lengths, computed, trees, tables, (sum(needed) + 5) * page)


def several(rng: random.Random, device: torch.device, *, page_tokens: int, most_rows: int, most_length: int) -> Case:
    """Two or three windows, some of whose nodes were computed before: a level of a draft, a batch."""
    while True:
        case = random_case(rng, device, page_tokens=page_tokens, most_rows=most_rows, most_length=most_length)
        if len(case.lengths) > 1 and any(case.computed):
            return case


def ancestors_of(parents: list[int]) -> Tensor:
    """bool [n, n], a node's own place included."""
    mask = torch.zeros(len(parents), len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] = mask[parent]
        mask[node, node] = True
    return mask


def random_choice(rng: random.Random, device: torch.device, n: int, vocab: int, *, filters: bool) -> Choice:
    def draw(values: list[float]) -> list[float]:
        return [rng.choice(values) for _ in range(n)]

    temperature = draw([0.0, 0.4, 1.0, 1.3])
    top_p, min_p, top_k = [1.0] * n, [0.0] * n, [0] * n
    for row in range(n if filters else 0):  # one filter a row, or top-p with min-p: what the kernels serve
        kind = rng.randrange(5)
        top_p[row] = rng.choice([0.3, 0.8, 0.95]) if kind in (1, 4) else 1.0
        min_p[row] = rng.choice([0.02, 0.3]) if kind in (2, 4) else 0.0
        top_k[row] = rng.choice([1, 3, 40]) if kind == 3 else 0
    allowed = None
    if rng.random() < 0.4:
        allowed = torch.randint(-(2**31), 2**31, (n, -(-vocab // 32))).int().to(device)
    return Choice(
        seed=torch.tensor([rng.randrange(2**62) for _ in range(n)], device=device),
        index=torch.tensor([rng.randrange(5000) for _ in range(n)], device=device),
        temperature=torch.tensor(temperature, device=device),
        top_k=torch.tensor(top_k, device=device),
        top_p=torch.tensor(top_p, device=device),
        min_p=torch.tensor(min_p, device=device),
        allowed=allowed,
    )
