"""How a reply's tokens are chosen: parameters, counter-based noise and the sampler.

The choice after a node is an argmax of filtered logits plus Gumbel noise keyed by (turn seed, index of the token in
the reply), so a seed says the same whoever drafted, however wide the window was and whoever shared the step.
Knows no session and no tree search; the tree only tells which tokens a penalty has to see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import InvalidSampling
from engine.tree import DraftTree

COLDEST = 1e-6
"""The lowest temperature that is not greedy: logits over less leave float32, and among infinities no grammar is heard.
"""
SMALLEST_PENALTY = 0.01


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters of one turn. The defaults are greedy decoding without filters.

    temperature: 0 is greedy, else from ``COLDEST``. top_k: 0 is off. top_p, min_p: probabilities; 1 and 0 are off.
    repetition_penalty: over the whole context, as in CTRL (Keskar et al. 2019); 1 is off.
    seed: of this turn's noise; None lets the session derive one from the reply's position.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        checks = (
            (
                "temperature",
                self.temperature,
                self.temperature == 0.0 or COLDEST <= self.temperature <= 100.0,
                f"0, or between {COLDEST} and 100",
            ),
            ("top_k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", self.min_p, 0.0 <= self.min_p <= 1.0, "between 0 and 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                SMALLEST_PENALTY <= self.repetition_penalty <= 100.0,
                f"between {SMALLEST_PENALTY} and 100",
            ),
        )
        for name, value, in_range, wanted in checks:
            if not math.isfinite(value) or not in_range:
                raise InvalidSampling(f"{name} must be {wanted}, not {value}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


_MASK64 = (1 << 64) - 1


def signed(value: int) -> int:
    value &= _MASK64
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = 0x9E3779B97F4A7C15
_MIX1 = signed(0xBF58476D1CE4E5B9)
_MIX2 = signed(0x94D049BB133111EB)


def mix64(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014) on one unsigned 64-bit integer."""
    value &= _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def derive_seed(call_seed: int, position: int, request: int = 0) -> int:
    """The seed of a turn that was given none: from the call's seed and where its reply starts in the token log.

    A detached generation adds its request number, so that it does not repeat the reply that starts there.
    """
    return mix64(mix64(mix64(call_seed + _GAMMA) + position * _GAMMA) + request * _GAMMA) >> 1


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64, which torch shifts arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def gumbel_noise(seed: int, first_index: int, count: int, vocab_size: int, device: torch.device) -> Tensor:
    """float32 [count, vocab_size]: standard Gumbel noise for reply indices ``first_index`` and on, by token id.

    Counter-based (SplitMix64 over (seed, index, id)), so any index can be had without those before it.
    """
    index = torch.arange(first_index, first_index + count, device=device)
    return gumbel_of_bits(noise_bits(torch.full_like(index, signed(seed)), index, vocab_size))


def noise_bits(seed: Tensor, index: Tensor, vocab_size: int) -> Tensor:
    """int64 [n, vocab_size]: 40 random bits for each token id, of seeds and reply indices, both int64 [n]."""
    keys = _mix(seed + (index + 1) * signed(_GAMMA))
    ids = torch.arange(1, vocab_size + 1, device=seed.device) * signed(_GAMMA)
    return _shift_right(_mix(keys[:, None] + ids), 24)


def gumbel_of_bits(bits: Tensor) -> Tensor:
    """float32: standard Gumbel noise of 40 random bits each."""
    # One minus the uniform, from 40 bits: fine steps where the noise is large, which is where the argmax looks.
    rest = ((bits.to(torch.float32) + 0.5) * 2.0**-40).clamp_(max=1.0 - 2.0**-24)
    return rest.neg_().log1p_().neg_().log_().neg_()


def _mix(x: Tensor) -> Tensor:
    """``mix64`` of every int64."""
    x = (x ^ _shift_right(x, 30)) * _MIX1
    x = (x ^ _shift_right(x, 27)) * _MIX2
    return x ^ _shift_right(x, 31)


class Sampler:
    """Chooses the target's token after every node of a tree. Stateless; one serves all sessions."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self.device = device

    def noise(self, seed: int, first_index: int, count: int) -> Tensor:
        """float32 [count, V] for reply indices ``first_index`` to ``first_index + count``."""
        return gumbel_noise(seed, first_index, count, self.vocab_size, self.device)

    def choose(
        self,
        logits: Tensor,
        sampling: Sampling,
        *,
        tree: DraftTree | None = None,
        noise: Tensor | None = None,
        seen: Tensor | None = None,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """int64 [n] on the CPU: the choice after each of n nodes.

        logits: [n, V], not changed. tree: the nodes; None where there is one node and its token is in ``seen``.
        noise: [levels, V], row d for nodes at depth d; needed unless greedy. seen: bool [V], the tokens of the
        context, root included, for the penalty. allowed: bool [n, V] of a grammar.
        Order: grammar, penalty, temperature, top-k, top-p, min-p, noise.
        """
        if allowed is not None:
            logits = torch.where(allowed, logits, -torch.inf)
        if sampling.repetition_penalty != 1.0 and seen is not None:
            logits = _penalise(logits, sampling.repetition_penalty, seen, tree)
        if sampling.greedy:
            return logits.argmax(-1).cpu()
        if noise is None:
            raise ValueError("sampling above temperature 0 needs noise")
        scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / sampling.temperature
        rows = noise if tree is None or len(tree) == 1 else noise[tree.depth.to(noise.device)]
        return _filtered_argmax(scaled, rows[: scaled.shape[0]], sampling).cpu()


def _penalise(logits: Tensor, penalty: float, seen: Tensor, tree: DraftTree | None) -> Tensor:
    """Divide positive and multiply negative logits of tokens in the context or among a node's own ancestors."""
    hit = seen.expand_as(logits)
    if tree is not None and len(tree) > 1:
        hit = hit.clone()
        node, ancestor = tree.mask.nonzero(as_tuple=True)
        hit[node.to(hit.device), tree.tokens[ancestor].to(hit.device)] = True
    return torch.where(hit, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _filtered_argmax(scaled: Tensor, noise: Tensor, sampling: Sampling) -> Tensor:
    """Argmax of ``scaled + noise`` over the tokens that top-k, top-p and min-p keep, without sorting the vocabulary.

    A token is in the nucleus when the mass strictly above it is below ``top_p``; where a row's winner is not, neither
    is any token at or below its probability, so those are struck out and the row chooses again. A winner is rarely
    outside, so this costs a few passes where sorting n rows of V would cost far more.
    """
    if 0 < sampling.top_k < scaled.shape[-1]:
        kth = scaled.topk(sampling.top_k, dim=-1).values[:, -1:]
        scaled = torch.where(scaled < kth, -torch.inf, scaled)
    keyed = scaled + noise
    if sampling.min_p > 0.0:
        floor = scaled.amax(-1, keepdim=True) + math.log(sampling.min_p)
        keyed = torch.where(scaled < floor, -torch.inf, keyed)
    chosen = keyed.argmax(-1)
    if sampling.top_p >= 1.0:
        return chosen
    probabilities = scaled.softmax(-1)
    while True:
        winner = probabilities.gather(-1, chosen[:, None])
        above = (probabilities * (probabilities > winner)).sum(-1)
        outside = (above > 0.0) & (above >= sampling.top_p)  # the likeliest is inside, however small the nucleus
        if not bool(outside.any()):
            return chosen
        struck = outside[:, None] & (probabilities <= winner)
        keyed = torch.where(struck, -torch.inf, keyed)
        chosen = keyed.argmax(-1)
