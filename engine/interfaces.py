"""The seams of the engine: what a target, a proposer, a sampler, a grammar and a text watcher must offer.

Weights are shared, state belongs to the session: ``Target``/``KVCache``, ``Proposer``/``Draft``. Nobody is ever asked
who it is, only for data (``taps``) and for work (``forward``, ``propose``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from engine.cache import KVCache
from engine.constraint import Constraint
from engine.page_table import PageTable
from engine.tree import DraftTree

Tap = int | Literal["norm"]
"""A place in the target's residual stream: 0 is the embeddings, i the output of layer i, L the last layer's output;
"norm" is the state after the final norm."""


@dataclass(frozen=True, eq=False)
class Window:
    """One session's share of a forward: a tree whose keys are written as scratch behind ``cache.length``.

    The caller must have called ``cache.reserve(len(tree))`` before. The first ``computed`` nodes are scratch already
    and are attended to but not computed again (a drafter grows its tree level by level).
    """

    cache: PageTable
    tree: DraftTree
    logits: Literal["all", "last", "none"] = "all"
    computed: int = 0


@dataclass(frozen=True, eq=False)
class Output:
    """What a forward gives back for one window of m computed nodes.

    logits:   float [m, V], [1, V] or None, as the window asked.
    features: float [m, taps, d] in the order of the taps asked for, or None when no taps were.
    """

    logits: Tensor | None
    features: Tensor | None


class Target(Protocol):
    """A language model whose weights are shared by every session."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def max_context_tokens(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...

    def new_cache(self) -> KVCache: ...
    def forward(self, windows: Sequence[Window], taps: Sequence[Tap] = ()) -> list[Output]: ...


class Draft(Protocol):
    """One session's drafting state. It follows the session's target cache through rewinds and forks."""

    @property
    def length(self) -> int:
        """Number of positions observed: the length of the target's cache."""
        ...

    def truncate(self, length: int) -> None:
        """Forget everything observed at positions ``length`` and after. The token at position ``length`` stays the
        one seen before (a rewind to n tokens keeps n-1 positions and forwards token n-1 again)."""
        ...

    def caches(self) -> Sequence[KVCache]:
        """Those that hold pages: they are moved to host memory, and back, with the target's."""
        ...

    def fork(self) -> Draft: ...
    def close(self) -> None:
        """Give back pages. Idempotent."""
        ...


class Proposer(Protocol):
    """Drafts trees. Its weights are shared; everything about a session is in that session's ``Draft``."""

    @property
    def name(self) -> str:
        """For telemetry only; nothing in the engine branches on it."""
        ...

    @property
    def taps(self) -> Sequence[Tap]:
        """Places of the residual stream that ``observe`` wants; () for none."""
        ...

    @property
    def top_k(self) -> int:
        """How many of the target's most likely tokens per position ``observe`` wants; 0 for none."""
        ...

    @property
    def noise_levels(self) -> int:
        """How many rows of the turn's noise ``propose`` wants; 0 for none."""
        ...

    def start(self) -> Draft: ...

    def observe(self, draft: Draft, tokens: Tensor, features: Tensor | None, top_ids: Tensor | None) -> None:
        """The target has committed ``tokens`` (int64 [m], CPU) at the draft's next m positions.

        features: [m, len(taps), d] of those positions. top_ids: int64 [m, top_k] on the target's device, or None where
        they were not looked up (a prompt, a first token). Must be cheap: it queues, and ``propose`` does the work,
        because somebody waits for the tokens of this step.
        """
        ...

    def behind(self, draft: Draft) -> int:
        """How many tokens it would have to read in ``propose`` before it drafts: those since it was last asked."""
        ...

    def catch_up(self, draft: Draft) -> bool:
        """Do now a piece of what ``propose`` would have to do first; whether there is more of it. Called when nobody
        waits, between other work, so a piece takes no longer than a step does; may do nothing."""
        ...

    def propose(
        self, drafts: Sequence[Draft], roots: Sequence[int], noise: Sequence[Tensor | None], budget: int
    ) -> list[DraftTree]:
        """One tree of at most ``budget`` nodes (root included) per draft.

        roots: the last chosen token of each session (not in the cache yet). noise: per session float
        [noise_levels, V], Gumbel times temperature for the next reply indices by target id (row 0 for the root's
        children), or None when greedy. A proposer rolls no dice of its own, so its trees depend on its arguments alone.
        """
        ...


class Grammar(Protocol):
    """Constrains what may be chosen. Injected by whoever submits a turn; there is none by default."""

    def mask(self, tree: DraftTree) -> Tensor:
        """bool [n, V]: what may follow each node of the tree. Of a node that may not come itself the row is any."""
        ...

    def narrow(self, tree: DraftTree, budget: int, room: int) -> DraftTree:
        """The tree without nodes that may not come, and with the tokens that must come behind its root, within
        ``budget`` nodes and ``room`` levels. Asked before the forward, where ``mask`` can be made while it runs."""
        ...

    def consume(self, tokens: Sequence[int]) -> None:
        """The reply has these tokens more."""
        ...


class Grammars(Protocol):
    """Makes grammars of constraints."""

    def prepare(self, constraint: Constraint) -> None:
        """It will be asked for soon."""
        ...

    def ready(self, constraint: Constraint) -> bool:
        """Whether it can be had at once. From now on it is being prepared."""
        ...

    def grammar(self, constraint: Constraint) -> Grammar:
        """For one reply. Raises InvalidConstraint for what cannot be enforced."""
        ...


class TextWatcher(Protocol):
    """Turns a reply's ids into text as they come and finds stop strings. Lives with one turn."""

    def push(self, token: int) -> str:
        """Add one token; return the text that has become safe to emit (may be empty)."""
        ...

    @property
    def stopped(self) -> bool:
        """True once a stop string has been completed; nothing after it is ever returned."""
        ...

    def finish(self) -> str:
        """The reply is over: return whatever was held back."""
        ...
