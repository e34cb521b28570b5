"""A forced way of drafting has nothing loaded that it never asks, and says the same; unknown names are refused."""

from __future__ import annotations

import pytest
import torch

from engine.config import EngineConfig
from engine.engine import Engine, Work
from engine.errors import ModelError
from engine.load import choose_policy, load_proposer, load_target_for, measured_engine, needed_drafter
from engine.pace import Pace, StepCosts
from engine.proposers.none import NoProposer
from engine.proposers.suffix import SuffixProposer
from engine.sampling import Sampling
from tests.engine.embedded import MODEL
from tests.engine.equal import held_out

HEAD = f"eagle3:{MODEL}/eagle3"
BOTH = f"suffix+{HEAD}"


@pytest.mark.parametrize(
    ("drafter", "mode", "needed"),
    [
        (BOTH, "auto", BOTH),
        (BOTH, "plain", "none"),
        (BOTH, "suffix", "suffix"),
        (BOTH, "suffix+eagle3", BOTH),
        (BOTH, "eagle3", BOTH),  # which is no name of a way, and is refused with those that are
        (HEAD, "suffix", HEAD),
        (HEAD, "eagle3", HEAD),
        ("suffix", "suffix", "suffix"),
        (f"recycling+{HEAD}+suffix", "recycling+suffix", "recycling+suffix"),
        (None, "plain", "none"),
        (None, "auto", "none"),
    ],
)
def test_what_a_mode_needs(drafter: str | None, mode: str, needed: str) -> None:
    assert needed_drafter(EngineConfig("m", drafter, draft_mode=mode)) == needed


def test_names_that_are_not_known_are_refused_in_every_mode() -> None:
    with pytest.raises(ModelError, match="drafter 'sufix' is not known"):
        needed_drafter(EngineConfig("m", "sufix", draft_mode="plain"))
    costs = StepCosts((1, 4), (0.01, 0.02), ((0.0, 0.001), (0.0, 0.001)), 0.001)
    config = EngineConfig("m", BOTH, draft_mode="eagle3")
    with pytest.raises(ModelError, match=r"'eagle3' is not one of these: auto, plain, suffix\+eagle3, suffix"):
        choose_policy(config, Pace(costs), ["suffix+eagle3", "suffix"])


def test_forced_modes_say_what_all_say_and_load_no_more() -> None:
    target = load_target_for(EngineConfig(str(MODEL), dtype="float64", pool_tokens=4096))
    prompt = held_out(1)[0].ids
    said, modes = {}, {}
    for mode in ("suffix+eagle3", "suffix", "plain"):
        config = EngineConfig(str(MODEL), BOTH, dtype="float64", draft_mode=mode, pool_tokens=4096)
        proposer = load_proposer(config, target)
        assert isinstance(proposer, {"plain": NoProposer, "suffix": SuffixProposer}.get(mode, object))
        engine = measured_engine(target, proposer, config)
        assert bool(proposer.taps) == (mode == "suffix+eagle3")  # no features are asked of the target for nobody
        said[mode], modes[mode] = reply(engine, prompt)
    assert said["plain"] == said["suffix"] == said["suffix+eagle3"]
    assert {mode: ways <= {mode, "plain"} for mode, ways in modes.items()} == dict.fromkeys(said, True)
    assert modes["plain"] == {"plain"} and "suffix" in modes["suffix"]


def reply(engine: Engine, prompt: list[int]) -> tuple[list[int], set[str]]:
    """(a reply, how its steps were drafted)."""
    session = engine.open("call", prompt, seed=1)
    turn = engine.submit(session, Sampling(), max_tokens=24)
    with torch.inference_mode():
        while turn.finish is None:
            engine.step([Work(session)])
    engine.close(session)
    return turn.tokens, {phase.mode for phase in turn.stats.phases}
