"""Drafts with a whole model of its own: a small decoder that speaks the target's tokens (Leviathan et al. 2023,
arXiv 2211.17192; here without its sampling rule, the target's own choice decides).

Any architecture that can be a target can be a drafter. It needs nothing of the target but the tokens of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from engine.cache import KVCache
from engine.errors import ModelError, OutOfPages
from engine.interfaces import Draft, Tap, Window
from engine.models.config import read_config
from engine.models.decoder import Decoder, load_target
from engine.proposers.search import NOISE_LEVELS, Shape, grow, noise_at, shape_for
from engine.proposers.setup import Setup, needed
from engine.text.codec import Codec
from engine.tree import DraftTree

CATCH_UP_CHUNK = 512
MOST_UNREAD = 2 * CATCH_UP_CHUNK
"""Tokens that are read at once inside a reply; past that it goes on undrafted, and a chunk is read at each step."""
SHOWN = 3
"""Tokens that a refusal names."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


class ModelDraft:
    """A ``Draft``: the text's tokens, and the model's keys of a prefix of them. The others are read when they are
    needed; until then they cost one number each, so nothing is ever given up.

    Keys that a tree left behind the prefix are not kept: the window that reads the root has to read the tree's last
    level too, and the nodes before it cost that forward next to nothing.
    """

    def __init__(self, cache: KVCache, tokens: list[int]) -> None:
        self.cache = cache
        self.tokens = tokens

    @property
    def length(self) -> int:
        return len(self.tokens)

    def truncate(self, length: int) -> None:
        del self.tokens[length:]
        if self.cache.length > length:
            self.cache.truncate(length)

    def caches(self) -> Sequence[KVCache]:
        return (self.cache,)

    def fork(self) -> ModelDraft:
        return ModelDraft(self.cache.fork(), self.tokens.copy())

    def close(self) -> None:
        self.cache.close()
        self.tokens.clear()


class DraftModelProposer:
    """A ``Proposer``. vocab_size: the target's. ``source``: its index in trees. ``chain``: draft one continuation.

    Past the longest context of the draft model it drafts nothing.
    """

    name = "draft"
    taps: Sequence[Tap] = ()
    top_k = 0
    noise_levels = NOISE_LEVELS

    def __init__(self, model: Decoder, vocab_size: int, *, source: int = 0, chain: bool = False) -> None:
        self.model = model
        self._width = min(model.vocab_size, vocab_size)
        self._source = source
        self._chain = chain

    def start(self) -> ModelDraft:
        return ModelDraft(self.model.new_cache(), [])

    def observe(self, draft: Draft, tokens: Tensor, features: Tensor | None, top_ids: Tensor | None) -> None:
        assert isinstance(draft, ModelDraft)
        draft.tokens += tokens.tolist()

    def behind(self, draft: Draft) -> int:
        assert isinstance(draft, ModelDraft)
        return 0 if draft.length >= self.model.max_context_tokens else draft.length - draft.cache.length

    def catch_up(self, draft: Draft) -> bool:
        assert isinstance(draft, ModelDraft)
        unread = draft.length - draft.cache.length
        if unread == 0 or draft.length >= self.model.max_context_tokens:
            return False
        self._read_chunk(draft)
        return unread > CATCH_UP_CHUNK

    def _read_chunk(self, draft: ModelDraft) -> None:
        """Feed the next unread tokens, a chunk at most."""
        start = draft.cache.length
        chain = DraftTree.chain(self._ids(draft.tokens[start : start + CATCH_UP_CHUNK]))
        draft.cache.reserve(len(chain))
        self.model.forward([Window(draft.cache, chain, "none")])
        draft.cache.commit(list(range(len(chain))))

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        """As ``Proposer.propose``. One of several sessions that finds no pages drafts nothing."""
        trees = []
        for draft, root, its_noise in zip(drafts, roots, noise, strict=True):
            try:
                trees.append(self._propose(draft, root, its_noise, budget))
            except OutOfPages:
                if len(drafts) == 1:
                    raise
                trees.append(DraftTree.chain(torch.tensor([root])))
        return trees

    def _propose(self, draft: Draft, root: int, noise: Tensor | None, budget: int) -> DraftTree:
        assert isinstance(draft, ModelDraft)
        shape = shape_for(budget, chain=self._chain)
        # The root and every level but the last, which is not read, have a position of the model's context.
        depth = min(shape.depth, self.model.max_context_tokens - draft.length)
        if depth < 1:
            return DraftTree.chain(torch.tensor([root]))
        if draft.length - draft.cache.length > MOST_UNREAD:  # nobody's reply may stand still for all of them
            self._read_chunk(draft)
            return DraftTree.chain(torch.tensor([root]))
        shape = Shape(depth, shape.beams)
        logits = self._read(draft, root, (depth - 1) * shape.beams)
        search = _Search(self.model, draft.cache, root, self._width, noise)
        return grow(search.log_probs(logits, 0)[0], search.expand, shape).tree(root, budget, self._source)

    def _read(self, draft: ModelDraft, root: int | None, scratch: int) -> Tensor | None:
        """Feed the tokens that are not in the cache, then the root as scratch. Returns the logits [1, V] behind it.

        scratch: nodes that the caller is going to write behind the root. Raises OutOfPages, and nothing was changed.
        """
        cache, kept = draft.cache, draft.length
        tokens = draft.tokens[cache.length :] + ([] if root is None else [root])
        cache.reserve(len(tokens) + scratch)
        ids, logits = self._ids(tokens), None
        for start in range(0, len(tokens), CATCH_UP_CHUNK):
            chain = DraftTree.chain(ids[start : start + CATCH_UP_CHUNK])
            ends_at_root = cache.length + len(chain) > kept
            logits = self.model.forward([Window(cache, chain, "last" if ends_at_root else "none")])[0].logits
            if committed := min(len(chain), kept - cache.length):
                cache.commit(list(range(committed)))
        return logits

    def _ids(self, tokens: Sequence[int]) -> Tensor:
        """A target may have padding rows, in no tokenizer, that the draft model lacks: it reads its own last there."""
        return torch.tensor(tokens).clamp_(max=self.model.vocab_size - 1)


class _Search:
    """The nodes of one tree that the model has read: scratch behind the cache, the root first, then level by level."""

    def __init__(self, model: Decoder, cache: KVCache, root: int, width: int, noise: Tensor | None) -> None:
        """width: ids from there on are not drafted. noise: float [levels, V] by the target's ids."""
        self._model = model
        self._cache = cache
        self._width = width
        self._noise = noise
        self._tokens, self._parents = torch.tensor([root]), torch.tensor([-1])
        self._mask = torch.ones(1, 1, dtype=torch.bool)
        self._level_start = 0

    def expand(self, level: int, ids: Tensor, rows: Tensor) -> Tensor:
        """``engine.proposers.search.Expand``: one forward of the level's nodes alone."""
        ids, rows = torch.stack([ids, rows]).cpu()
        tree, computed = self._append(ids, rows + self._level_start), self._tokens.numel() - ids.numel()
        self._level_start = computed
        return self.log_probs(self._model.forward([Window(self._cache, tree, "all", computed)])[0].logits, level)

    def log_probs(self, logits: Tensor | None, level: int) -> Tensor:
        """[m, W] of logits behind nodes of depth ``level``, with the noise added that the target will add there."""
        assert logits is not None
        logits, noise = logits[:, : self._width].float(), noise_at(self._noise, level)
        if noise is not None:
            logits = logits + noise[: self._width]
        return logits.log_softmax(-1)

    def _append(self, ids: Tensor, parents: Tensor) -> DraftTree:
        self._tokens = torch.cat([self._tokens, ids])
        if ids.numel() == 1:
            return DraftTree.chain(self._tokens)
        n, old = self._tokens.numel(), self._mask.shape[0]
        mask = torch.eye(n, dtype=torch.bool)
        mask[:old, :old] = self._mask
        mask[old:, :old] = self._mask[parents]
        self._mask, self._parents = mask, torch.cat([self._parents, parents])
        tree = DraftTree(self._tokens, self._parents, score=torch.ones(n), source=torch.full((n,), -1))
        vars(tree)["mask"] = mask  # what the property would find node by node, at every level anew
        return tree


def load(path: Path | None, setup: Setup) -> DraftModelProposer:
    """The table's way in: a checkpoint directory of any architecture that can be a target, with its own pool of pages.

    Raises ModelError by name for whatever cannot be served, and where the tokens are not the target's.
    """
    directory, target = needed(path, DraftModelProposer.name), setup.target
    _check_vocabulary(directory, read_config(directory).vocab_size, setup)  # before any weight is read
    model = load_target(
        directory,
        dtype=target.dtype,
        device=target.device,
        pool_tokens=setup.pool_tokens,
        page_tokens=setup.page_tokens,
        kernels=setup.kernels,
    )
    return DraftModelProposer(model, target.vocab_size, source=setup.source, chain=setup.chain)


def _check_vocabulary(directory: Path, vocab_size: int, setup: Setup) -> None:
    """Raises ModelError unless every token has the same id in both tokenizers.

    Embeddings may be padded to different sizes. A directory without a tokenizer (the draft model's, or the target's)
    is taken at its word where the sizes are equal: nothing else is known of it.
    """
    target_size = setup.target.vocab_size
    if not all(any((place / name).exists() for name in TOKENIZER_FILES) for place in (directory, setup.model)):
        if vocab_size != target_size:
            raise ModelError(
                f"{directory}: the draft model has {vocab_size} tokens, the target {target_size}, and without both "
                "tokenizers they cannot be compared"
            )
        return
    drafted: dict[str, int] = Codec.load(directory, vocab_size).hf.get_vocab()
    wanted: dict[str, int] = Codec.load(setup.model, target_size).hf.get_vocab()
    differing = [token for token in {**wanted, **drafted} if wanted.get(token) != drafted.get(token)]
    if differing:
        differing.sort(key=lambda token: wanted.get(token, len(wanted) + drafted.get(token, 0)))
        named = "; ".join(
            f"{token!r} is {drafted.get(token, 'missing')} and {wanted.get(token, 'missing')} in the target"
            for token in differing[:SHOWN]
        )
        raise ModelError(
            f"{directory}: the draft model does not speak the target's tokens ({len(drafted)} and {len(wanted)}, "
            f"{len(differing)} differ): {named}"
        )
