"""The sampler against transformers' own logits processors, and the noise against what it must be."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.errors import InvalidSampling
from engine.sampling import COLDEST, SMALLEST_PENALTY, Sampler, Sampling, derive_seed, gumbel_noise
from engine.tree import DraftTree

VOCAB = 97
CPU = torch.device("cpu")


def reference_choice(logits: torch.Tensor, context: list[int], sampling: Sampling, noise: torch.Tensor) -> int:
    """Argmax over what transformers' processors leave of one row, plus the same noise."""
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if not sampling.greedy:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            processors.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            processors.append(MinPLogitsWarper(sampling.min_p))
    scores = processors(torch.tensor([context]), logits[None].clone())
    return int((scores[0] + (0.0 if sampling.greedy else noise)).argmax())


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 40, 500]),
    top_p=st.sampled_from([1.0, 0.95, 0.7, 0.3, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
)


@st.composite
def trees(draw: st.DrawFn) -> DraftTree:
    n = draw(st.integers(1, 12))
    parents = [-1] + [draw(st.integers(0, i - 1)) for i in range(1, n)]
    tokens = draw(st.lists(st.integers(0, VOCAB - 1), min_size=n, max_size=n, unique=True))
    return DraftTree(torch.tensor(tokens), torch.tensor(parents), torch.ones(n), torch.zeros(n).long())


@given(SAMPLINGS, trees(), st.integers(0, 2**40), st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20))
@settings(max_examples=150, deadline=None)
def test_every_node_chooses_what_transformers_would(
    sampling: Sampling, tree: DraftTree, seed: int, context: list[int]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(tree), VOCAB, generator=generator, dtype=torch.float64) * 3
    sampler = Sampler(VOCAB, CPU)
    noise = sampler.noise(seed, 3, int(tree.depth.max()) + 1)
    seen = torch.zeros(VOCAB, dtype=torch.bool)
    seen[[*context, int(tree.tokens[0])]] = True  # the root is part of the context
    chosen = sampler.choose(logits, sampling, tree=tree, noise=noise, seen=seen)
    for node in range(len(tree)):
        ancestors = [int(tree.tokens[a]) for a in range(len(tree)) if bool(tree.mask[node, a])]
        # The penalty counts a token once however often it occurs.
        wanted = reference_choice(logits[node], context + ancestors, sampling, noise[int(tree.depth[node])])
        assert int(chosen[node]) == wanted


def test_noise_is_the_same_for_an_index_however_it_was_asked_for() -> None:
    together = gumbel_noise(42, 5, 8, 2048, CPU)
    apart = torch.cat([gumbel_noise(42, 5 + i, 1, 2048, CPU) for i in range(8)])
    assert torch.equal(together, apart)
    assert not torch.equal(together, gumbel_noise(43, 5, 8, 2048, CPU))


def test_noise_is_standard_gumbel_and_independent() -> None:
    noise = gumbel_noise(7, 0, 400, 2048, CPU).double()
    n = noise.numel()
    assert torch.isfinite(noise).all()
    assert abs(noise.mean() - 0.5772156649) < 5 * math.sqrt(math.pi**2 / 6 / n)
    assert abs(noise.var() - math.pi**2 / 6) < 0.02
    # Kolmogorov-Smirnov against exp(-exp(-x)), at a level of one in ten thousand.
    ordered = noise.flatten().sort().values
    cdf = torch.exp(-torch.exp(-ordered))
    empirical = torch.arange(1, n + 1, dtype=torch.float64) / n
    assert (cdf - empirical).abs().max() < 2.23 / math.sqrt(n)
    for shift in (1, 2):
        by_index = torch.corrcoef(torch.stack([noise[:-shift].flatten(), noise[shift:].flatten()]))[0, 1]
        by_token = torch.corrcoef(torch.stack([noise[:, :-shift].flatten(), noise[:, shift:].flatten()]))[0, 1]
        assert abs(by_index) < 5 / math.sqrt(n)
        assert abs(by_token) < 5 / math.sqrt(n)


def test_sampling_follows_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(20_000, 4)
    noise = gumbel_noise(1, 0, 20_000, 4, CPU)
    sampler = Sampler(4, CPU)
    chain = DraftTree.chain(torch.zeros(20_000).long())
    chosen = sampler.choose(logits, Sampling(0.5), tree=chain, noise=noise)
    frequency = torch.bincount(chosen, minlength=4) / 20_000
    expected = (logits[0] / 0.5).softmax(-1)
    assert (frequency - expected).abs().max() < 5 * 0.5 / math.sqrt(20_000)


def test_derived_seeds_differ_by_call_position_and_request() -> None:
    seeds = {derive_seed(call, at, request) for call in range(10) for at in range(50) for request in range(3)}
    assert len(seeds) == 10 * 50 * 3
    assert derive_seed(1, 2) == derive_seed(1, 2, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 4e-320),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 5e-324),
        ("repetition_penalty", math.inf),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InvalidSampling, match=field):
        Sampling(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_at_the_ends_of_the_ranges_only_what_is_allowed_is_chosen(dtype: torch.dtype) -> None:
    """Nothing of it leaves the numbers that there are: what is chosen of infinities no grammar has allowed."""
    logits = torch.randn(64, 300, generator=torch.Generator().manual_seed(1)).mul(60).to(dtype)
    allowed, seen = torch.rand(64, 300, generator=torch.Generator().manual_seed(2)) < 0.1, torch.arange(300) % 2 == 0
    sampler = Sampler(300, torch.device("cpu"))
    noise = sampler.noise(7, 0, 1)
    for temperature, penalty in itertools.product((COLDEST, 100.0), (SMALLEST_PENALTY, 100.0)):
        for rest in ({}, {"top_p": 5e-324}, {"min_p": 5e-324}, {"top_k": 3, "top_p": 0.5, "min_p": 1.0}):
            sampling = Sampling(temperature=temperature, repetition_penalty=penalty, **rest)
            for row in range(64):
                one, may = logits[row : row + 1], allowed[row : row + 1]
                (chosen,) = sampler.choose(one, sampling, noise=noise, seen=seen, allowed=may).tolist()
                assert may[0, chosen]
