"""An engine host whose steps are static says what one says whose steps are not."""

from __future__ import annotations

from typing import Any

import pytest

from engine import records
from engine.config import EngineConfig
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
