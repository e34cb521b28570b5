"""Whether the head that is served reads the layers it was trained on: further on nothing fails, and its guesses
are worth less.
"""

from __future__ import annotations

from engine.config import EngineConfig
from engine.engine import Engine, Work
from engine.load import load_proposer, load_target_for
from engine.policy import FixedPolicy
from engine.sampling import Sampling
from tests.engine.embedded import HEAD, MODEL, codec
from tests.engine.equal import embedded_prompts

TAPS = (2, 4, 5)


def tokens_a_step(taps: tuple[int, ...] | None) -> float:
    config = EngineConfig(str(MODEL), f"eagle3:{HEAD}", pool_tokens=4096, draft_layer_ids=taps)
    target = load_target_for(config)
    engine = Engine(target, load_proposer(config, target), FixedPolicy(8))
    steps = tokens = 0
    for number, prompt in enumerate(embedded_prompts(12)):
        session = engine.open(f"call {number}", prompt)
        turn = engine.submit(session, Sampling(), max_tokens=24, stop_tokens=codec().stop_tokens)
        while turn.finish is None:
            engine.step([Work(session)])
        engine.close(session)
        steps, tokens = steps + turn.stats.steps - 1, tokens + turn.num_tokens - 1
    return tokens / steps


def test_the_head_reads_the_layers_that_it_was_trained_on() -> None:
    """One layer further on the states of so small a model are nearly the same (0.97 of the tokens); so two."""
    right = tokens_a_step(None)
    assert tokens_a_step(TAPS) == right
    for shifted in ((1, 3, 4), (4, 6, 7)):
        assert tokens_a_step(shifted) < 0.95 * right
