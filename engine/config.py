"""What an engine is started with. Plain values; whoever starts the engine reads files and environments."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class EngineConfig:
    """One resident model.

    model: directory of the target in Hugging Face layout. drafter: ``eagle3:DIRECTORY``, ``suffix``, ... as
    ``engine.proposers.table`` names them, several joined by ``+``; None drafts nothing.
    dtype: "float32", "bfloat16", "float16" or "float64". device: as torch names it. threads: of the CPU, per process.
    max_context_tokens: of one session; 0 takes the model's own limit.
    pool_tokens: positions in the page pool, over all sessions. host_cache_bytes: host memory for the pages of sessions
    that are idle while others need the pool; past it, and with 0 at once, they are computed again when wanted.
    prefill_chunk_tokens: most tokens of one prefill step.
    draft_nodes: "auto" lets measured costs and acceptance decide; a number fixes the tree, 1 is plain decoding.
    draft_mode: "auto" lets measured costs and acceptance decide as the load changes; "plain", the drafter's whole name,
    or what of it runs no model (``suffix`` of ``suffix+eagle3:DIR``), drafts in that way alone.
    draft_shape: "tree", or "chain": one continuation, for drafters so large that a tree's levels do not pay.
    scheduling: "deadline", or "fcfs" (first come, first served) to compare with.
    speaking_rate: tokens that a synthesiser speaks in a second, where nobody measured the call's own.
    draft_rope_theta: overrides the head's own value (some published heads state one they were not trained with).
    draft_layer_ids: overrides the head's taps, as residual-stream indices.
    kernels: "triton", "plain", or "auto", which is triton on CUDA. graphs: steps of fixed shape, captured as CUDA
    graphs (and run as they are on a CPU, which is for tests); None: on CUDA. weights: "full", or "fp8" or "int8" to
    quantise the layers' matrices at load; a checkpoint that is quantised already is served as it is.
    ranks: processes of this host that share the model's heads and units, each on a GPU of its own from ``device`` on;
    this one and others that it starts. For models that do not fit one.
    couple_noise: drafters share the noise of sampled turns; None: where several are merged. The one merge that was
    measured, ``suffix+eagle3``, had more accepted with it (it calibrates its scores), single ones less.
    """

    model: str
    drafter: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    max_context_tokens: int = 0
    pool_tokens: int = 65_536
    page_tokens: int = 16
    host_cache_bytes: int = 1 << 30
    prefill_chunk_tokens: int = 256
    draft_nodes: int | str = "auto"
    draft_mode: str = "auto"
    draft_shape: str = "tree"
    scheduling: str = "deadline"
    speaking_rate: float = 3.5
    draft_rope_theta: float | None = None
    draft_layer_ids: tuple[int, ...] | None = None
    couple_noise: bool | None = None
    kernels: str = "auto"
    graphs: bool | None = None
    weights: str = "full"
    ranks: int = 1

    @property
    def captures(self) -> bool:
        """Whether steps are static."""
        return self.device.startswith("cuda") if self.graphs is None else self.graphs

    @property
    def couples(self) -> bool:
        """Whether the noise is shared."""
        return len(split_drafters(self.drafter or "")) > 1 if self.couple_noise is None else self.couple_noise


def split_drafters(spec: str) -> list[tuple[str, str]]:
    """``eagle3:DIR+suffix`` as (name, checkpoint or empty) of each. A ``+`` inside of a path splits nothing."""
    parts = re.split(r"\+(?=[a-z0-9_]*(?:[:+]|$))", spec)
    return [(name, path) for name, _, path in (part.partition(":") for part in parts)]
