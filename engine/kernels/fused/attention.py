"""Attention of a few rows over many pages: the keys are split among programs, whose parts are joined afterwards.

Flash-decoding (Dao et al. 2023) with a page table and a tree mask. Query heads that share a key head are folded into
rows of one product, so a key is read once for all of them. How far a window reaches is read on the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.rows import WORD, Rows

KEYS, WIDE_KEYS = 64, 32
"""Positions of one tile; in float32, whose products no matrix instruction makes: they are unrolled into registers."""
MOST_QUERIES, WIDE_MOST_QUERIES = 64, 16
"""Folded query rows of one program at most."""
BROAD = 128
"""Heads that are wider leave registers for fewer rows."""
PROGRAMS = 264
"""Programs that fill the card: two for each of the 132 multiprocessors of an H100 or H200."""
FEW_SPLITS, MOST_SPLITS = 8, 64
LOG2_E = 1.4426950408889634


def attend(query: Tensor, kv: Tensor, rows: Rows) -> Tensor:
    """``Ops.attend``. query: [n, heads, head_dim]; head_dim is a power of two of at least 16."""
    n, heads, head_dim = query.shape
    kv_heads = kv.shape[2]
    group = heads // kv_heads
    wide = query.dtype == torch.float32
    keys, most_queries = (WIDE_KEYS, WIDE_MOST_QUERIES) if wide else (KEYS, MOST_QUERIES)
    most_queries = max(16, most_queries * BROAD // max(BROAD, head_dim))
    queries = min(most_queries, max(16, triton.next_power_of_2(rows.max_rows * group)))
    blocks = triton.cdiv(rows.max_rows * group, queries)
    width = rows.tables.shape[1]
    splits = _splits(rows.num_windows * blocks * kv_heads, width * rows.page_tokens)
    query = query.contiguous()
    out = torch.empty(n, heads * head_dim, dtype=query.dtype, device=query.device)
    parts = torch.empty(splits, n, heads, head_dim, dtype=torch.float32, device=query.device)
    marks = torch.empty(2, splits, n, heads, dtype=torch.float32, device=query.device)
    ancestors = rows.positions if rows.ancestors is None else rows.ancestors
    _attend_split[(rows.num_windows * blocks, kv_heads, splits)](
        query,
        kv,
        rows.tables,
        rows.lengths,
        rows.computed,
        rows.starts,
        ancestors,
        parts,
        marks,
        n,
        blocks,
        width,
        1 if rows.ancestors is None else rows.ancestors.shape[1],
        kv.stride(0),
        LOG2_E * head_dim**-0.5,
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD=head_dim,
        PAGE=rows.page_tokens,
        SPLITS=splits,
        QUERIES=queries,
        KEYS=keys,
        CAUSAL=rows.ancestors is None,
        WORD=WORD,
        num_warps=4,
        num_stages=2,
    )
    _join[(n, heads)](parts, marks, out, n, HEADS=heads, HEAD=head_dim, SPLITS=splits, num_warps=2)
    return out


def _splits(programs: int, most_keys: int) -> int:
    """Parts that a window's keys are read in, a power of two: no more than fill the card.

    Of the keys only whether they are few matters: every number of parts is a kernel of its own, and a call that grows
    must not wait for one to be compiled.
    """
    most = FEW_SPLITS if most_keys <= FEW_SPLITS * KEYS else MOST_SPLITS
    wanted = min(most, max(1, PROGRAMS // programs))
    return 1 << (wanted.bit_length() - 1)


@triton.jit
def _tile(
    q,
    kv,
    table,
    ancestors,
    best,
    total,
    sums,
    first_key,
    stop,
    length,
    own,
    row_words,
    row_live,
    head,
    values_at,
    scale,
    KV_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    PAGE: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WORD: tl.constexpr,
    SCRATCH: tl.constexpr,
):
    """One tile of keys into the running softmax of Milakov and Gimelshein (2018). SCRATCH: some are not committed."""
    at = first_key + tl.arange(0, KEYS)
    dims = tl.arange(0, HEAD)
    inside = at < stop
    page = tl.load(table + at // PAGE, mask=inside, other=0).to(tl.int64)
    place = ((page * PAGE + at % PAGE) * KV_HEADS + head) * HEAD
    keys = tl.load(kv + place[None, :] + dims[:, None], mask=inside[None, :], other=0.0)
    score = tl.dot(q, keys, input_precision="ieee") * scale
    seen = inside[None, :] & row_live[:, None]
    if SCRATCH:
        node = at - length
        if CAUSAL:
            seen = seen & (node[None, :] <= own[:, None])
        else:
            wanted = seen & (node >= 0)[None, :]
            near = tl.where(node >= 0, node, 0)
            word = tl.load(ancestors + row_words[:, None] + (near // WORD)[None, :], mask=wanted, other=0)
            bit = (word >> (near % WORD).to(tl.int64)[None, :]) & 1
            seen = seen & ((node < 0)[None, :] | (bit == 1))
    score = tl.where(seen, score, -1.0e30)
    higher = tl.maximum(best, tl.max(score, 1))
    weight = tl.where(seen, tl.exp2(score - higher[:, None]), 0.0)
    fade = tl.exp2(best - higher)
    total = total * fade + tl.sum(weight, 1)
    values = tl.load(kv + values_at + place[:, None] + dims[None, :], mask=inside[:, None], other=0.0)
    sums = sums * fade[:, None] + tl.dot(weight.to(values.dtype), values, input_precision="ieee")
    return higher, total, sums


# What the host describes comes as pieces of one tensor: where each begins must not decide which kernel there is.
@triton.jit(
    do_not_specialize=["n", "blocks", "width", "words"],
    do_not_specialize_on_alignment=["tables", "lengths", "computed", "starts", "ancestors"],
)
def _attend_split(
    query,
    kv,
    tables,
    lengths,
    computed,
    starts,
    ancestors,
    parts,
    marks,
    n,
    blocks,
    width,
    words,
    values_at,
    scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    PAGE: tl.constexpr,
    SPLITS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WORD: tl.constexpr,
):
    window = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    head = tl.program_id(1)
    split = tl.program_id(2)
    start = tl.load(starts + window).to(tl.int32)
    rows = tl.load(starts + window + 1).to(tl.int32) - start
    length = tl.load(lengths + window).to(tl.int32)
    before = tl.load(computed + window).to(tl.int32)
    folded = block * QUERIES + tl.arange(0, QUERIES)
    row = folded // GROUP
    live = row < rows
    heads = head * GROUP + folded % GROUP
    dims = tl.arange(0, HEAD)
    place = ((start + row) * (KV_HEADS * GROUP) + heads).to(tl.int64) * HEAD
    q = tl.load(query + place[:, None] + dims[None, :], mask=live[:, None], other=0.0)
    own = before + row
    row_words = (start + row) * words
    table = tables + window * width
    stop = length + before + rows
    if CAUSAL:  # no row of this block sees further than its last one
        stop = tl.minimum(stop, length + before + ((block + 1) * QUERIES - 1) // GROUP + 1)
    tiles = tl.cdiv(stop, KEYS)
    each = tl.cdiv(tiles, SPLITS)
    first = split * each
    last = tl.minimum(first + each, tiles)
    plain = tl.minimum(tl.maximum(length // KEYS, first), last)  # tiles up to here are committed whole
    best = tl.full([QUERIES], -1.0e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, HEAD], tl.float32)
    for tile in range(first, plain):
        best, total, sums = _tile(
            q, kv, table, ancestors, best, total, sums, tile * KEYS, stop, length, own, row_words, live, head,
            values_at, scale, KV_HEADS, HEAD, PAGE, KEYS, CAUSAL, WORD, False,
        )  # fmt: skip
    for tile in range(plain, last):
        best, total, sums = _tile(
            q, kv, table, ancestors, best, total, sums, tile * KEYS, stop, length, own, row_words, live, head,
            values_at, scale, KV_HEADS, HEAD, PAGE, KEYS, CAUSAL, WORD, True,
        )  # fmt: skip
    out = (split * n + start + row) * (KV_HEADS * GROUP) + heads
    tl.store(parts + out.to(tl.int64)[:, None] * HEAD + dims[None, :], sums, mask=live[:, None])
    tl.store(marks + out, best, mask=live)
    tl.store(marks + SPLITS * n * (KV_HEADS * GROUP) + out, total, mask=live)


@triton.jit(do_not_specialize=["n"])
def _join(parts, marks, out, n, HEADS: tl.constexpr, HEAD: tl.constexpr, SPLITS: tl.constexpr):
    row = tl.program_id(0)
    head = tl.program_id(1)
    dims = tl.arange(0, HEAD)
    part = (tl.arange(0, SPLITS) * n + row) * HEADS + head
    best = tl.load(marks + part)
    total = tl.load(marks + SPLITS * n * HEADS + part)
    share = tl.exp2(best - tl.max(best, 0))
    sums = tl.load(parts + part.to(tl.int64)[:, None] * HEAD + dims[None, :])
    joined = tl.sum(sums * share[:, None], 0) / tl.sum(total * share, 0)
    place = (row * HEADS + head) * HEAD + dims
    tl.store(out + place, joined.to(out.dtype.element_ty))
