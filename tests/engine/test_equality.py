"""Slices of the equality suite (``python -m tests.equality`` runs the whole), and that it can fail."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine import engine as engine_module
from engine.engine import Engine
from engine.interfaces import Proposer
from engine.models.decoder import Decoder
from engine.policy import FixedPolicy
from engine.proposers.eagle3 import load_eagle3
from engine.sampling import Sampling
from tests import equality
from tests.engine import checkpoints, equal
from tests.engine.embedded import MODEL, codec
from tests.engine.equal import TREES, Count
from tests.engine.loading import load
from tests.engine.oracle import OracleProposer
from tests.engine.proposers import heads
from tests.engine.rounding import CLOSE, differ_by_rounding, is_close, next_logits


@pytest.fixture(scope="module")
def served() -> Decoder:
    return equality.embedded(torch.float32)


@pytest.fixture(scope="module")
def exact() -> Decoder:
    return equality.embedded(torch.float64)


def assert_equal(counts: list[Count]) -> None:
    for count in counts:
        assert count.differences == [], f"{count.model}, {count.drafter}"
        assert count.replies > 0


@pytest.fixture(scope="module", params=list(checkpoints.CONFIGS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, PreTrainedModel]:
    directory: Path = tmp_path_factory.mktemp(request.param)
    reference = checkpoints.write(request.param, directory)
    return load(directory, torch.float64), reference


def test_greedy_text_is_that_of_transformers(pair: tuple[Decoder, PreTrainedModel]) -> None:
    target, model = pair
    counts = equal.greedy_rows("random weights", target, model, equal.random_prompts(12), frozenset())
    assert_equal(counts)
    assert target.pool.pages_in_use == 0
    for count, (nodes, _) in zip(counts, TREES, strict=True):
        if nodes <= 16:  # larger ones need more replies than there is time for here
            assert equal.missing_lengths(count, nodes, 12) == [], "the oracle must make every accepted length occur"


def test_sampled_text_does_not_depend_on_the_tree(pair: tuple[Decoder, PreTrainedModel]) -> None:
    """Random weights are unsure, so every filter and penalty decides something."""
    oracle = OracleProposer(checkpoints.VOCAB, 1)
    engine = Engine(pair[0], oracle, FixedPolicy())
    count = Count("random weights", "oracle")
    for number, prompt in enumerate(equal.random_prompts(2, seed=9)):
        base = equal.warm(engine, prompt)
        for ask in equal.asks(number, seeds=5):
            wanted = equal.reply(engine, base, ask.sampling, max_tokens=40, drafting=False)
            oracle.reference, engine.drafting.policy = [*prompt, *wanted.tokens], FixedPolicy(ask.nodes)
            assert equal.reply(engine, base, ask.sampling, max_tokens=40, count=count) == wanted, ask
        engine.close(base)
    assert set(range(5)) <= set(count.lengths)


def test_greedy_text_of_the_embedded_model_is_that_of_transformers(exact: Decoder) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float64).eval()
    asked = equal.embedded_prompts(18)[::6]
    assert_equal(equal.greedy_rows("embedded", exact, model, asked, codec().stop_tokens))


def random_head(target: Decoder, directory: Path) -> Proposer:
    """A head whose drafts are accepted by chance alone."""
    tensors = heads.random_head(target.config, draft_vocab=500)
    heads.write(directory, tensors, heads.head_config(target.config))
    return load_eagle3(directory, target, pool_tokens=equal.POOL_TOKENS)


@pytest.mark.parametrize("drafter", ["oracle", "random head"])
def test_sampled_text_is_the_same_with_and_without_a_drafter(
    drafter: str, served: Decoder, exact: Decoder, tmp_path: Path
) -> None:
    oracle = drafter == "oracle"
    proposer: Proposer = OracleProposer(served.vocab_size, 0) if oracle else random_head(served, tmp_path)
    asked = equal.embedded_prompts(8)[:: 4 if oracle else 8]
    counts = equal.sampled_rows(served, exact, {drafter: proposer}, asked, seeds=3, stop=codec().stop_tokens)
    assert_equal(counts)
    assert {"stop_token", "stop_string"} <= set(counts[0].finishes)
    assert served.pool.pages_in_use == 0
    assert not oracle or set(range(5)) <= set(counts[0].lengths)


def test_the_suite_finds_an_acceptance_rule_that_is_too_kind(
    served: Decoder, exact: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "accept", equal.too_kind)
    model = checkpoints.write("llama-tied", tmp_path)
    counts = equal.greedy_rows("x", load(tmp_path, torch.float64), model, equal.random_prompts(2), frozenset())
    assert not counts[0].differences
    assert all(count.differences for count in counts[1:])
    oracle: dict[str, Proposer] = {"oracle": OracleProposer(served.vocab_size, 0)}
    asked = equal.embedded_prompts(1)
    assert equal.sampled_rows(served, exact, oracle, asked, seeds=2, stop=codec().stop_tokens)[0].differences


def test_an_accepted_length_that_never_occurs_is_missed() -> None:
    count = Count("x", "y", lengths=Counter({0: 9, 1: 4, 3: 1}), lasted=Counter({6: 39, 7: 1, 2: 50}))
    assert equal.missing_lengths(count, 5) == [2, 4]
    assert equal.missing_lengths(count, 60) == [2, 4]
    assert equal.missing_lengths(count, 60, 1) == [2, 4, 5]
    assert equal.missing_lengths(count, 1) == []


def test_only_close_decisions_are_left_to_rounding() -> None:
    logits = torch.linspace(1, -1, 8, dtype=torch.float64)
    logits[3], logits[5] = 2.0, 2.0 - CLOSE / 2
    assert is_close(logits, [], Sampling(), None, 3, 5)
    assert not is_close(logits, [], Sampling(), None, 3, 1)
    logits[5] = 2.0 - 3 * CLOSE
    assert not is_close(logits, [], Sampling(), None, 3, 5)
    assert is_close(logits, [3], Sampling(repetition_penalty=2.0 / float(logits[5])), None, 3, 5)
    noise = torch.zeros(1, 8)
    noise[0, 0] = 10.0  # token 0 wins wherever the nucleus holds it, token 3 where not
    above = float(logits.softmax(-1)[[3, 5]].sum())
    assert is_close(logits, [], Sampling(1.0, top_p=above + CLOSE / 2), noise, 0, 3)
    assert not is_close(logits, [], Sampling(1.0, top_p=above + 3 * CLOSE), noise, 0, 3)


def test_replies_that_part_at_a_clear_decision_do_not_differ_by_rounding(exact: Decoder) -> None:
    (prompt,) = equal.embedded_prompts(1)
    best = next_logits(exact, prompt).topk(2).indices.tolist()
    assert not differ_by_rounding(exact, prompt, [best[0]], [best[1]], Sampling())
    assert not differ_by_rounding(exact, prompt, [best[0]], [best[0], 5], Sampling())
    assert exact.pool.pages_in_use == 0
