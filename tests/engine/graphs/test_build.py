"""An engine host whose steps are static says what one says whose steps are not."""

from __future__ import annotations

from typing import Any

import pytest

from engine import records
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import ModelError
from engine.graphs.engine import GraphEngine
from engine.load import load_host
from engine.sampling import Sampling
from tests.engine.embedded import HEAD, MODEL
from tests.engine.equal import embedded_prompts


def said(drafter: str, **more: Any) -> tuple[list[int], type]:
    config = EngineConfig(
        str(MODEL), drafter, dtype="float64", pool_tokens=2048, max_context_tokens=640, draft_nodes=8, **more
    )
    host, _ = load_host(config)
    prompt = tuple(embedded_prompts(1)[0][-200:])
    host.handle(records.Open("call"))
    events = host.handle(records.Submit("call", 1, 0, prompt, Sampling(0.7, seed=2), max_tokens=50))
    while host.busy:
        events += host.advance()
    ended = events[-1]
    assert isinstance(ended, records.Ended)
    tokens = [token for event in events if isinstance(event, records.Progress) for token in event.tokens]
    return tokens, type(host.engine)


@pytest.mark.parametrize("drafter", [f"eagle3:{HEAD}", f"mtp:{MODEL / 'mtp'}", "suffix"], ids=lambda name: name[:6])
def test_hosts_say_the_same(drafter: str) -> None:
    static, kind = said(drafter, graphs=True)
    assert (kind is GraphEngine) == (drafter != "suffix")
    assert static == said(drafter)[0]


def test_chains_have_no_static_drafts() -> None:
    """They may be of any length, and a static step searches a tree."""
    chained, kind = said(f"eagle3:{HEAD}", graphs=True, draft_shape="chain")
    assert kind is Engine
    assert chained == said(f"eagle3:{HEAD}", draft_shape="chain")[0]


def test_a_gpu_that_is_not_there_is_said_before_anything_is_loaded() -> None:
    with pytest.raises(ModelError, match="would have GPU 90"):
        load_host(EngineConfig("nowhere", device="cuda:90"))
