"""An engine whose target two processes share says what one alone says: served, drafted, rewound, shared and moved."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine import records
from engine.config import EngineConfig
from engine.errors import ModelError
from engine.host import EngineHost
from engine.load import load_host
from engine.ranks.launch import other_ranks
from engine.ranks.orders import Forget
from engine.sampling import Sampling
from tests.engine.embedded import HEAD, MODEL
from tests.engine.equal import embedded_prompts

DRAFTER = f"suffix+eagle3:{HEAD}"
STATIC = {"graphs": True, "max_context_tokens": 480, "drafter": f"eagle3:{HEAD}"}
"""Static forwards, and whole trees drafted in a static step."""
POOL_TOKENS = 640
"""Two of the calls below, so that they have to make room for each other."""


@contextmanager
def host_of(ranks: int, **more: Any) -> Iterator[EngineHost]:
    """The embedded model in float64, where no decision is so close that the order of a sum would make it."""
    settings = {"pool_tokens": POOL_TOKENS, "dtype": "float64", "draft_nodes": 8, "drafter": DRAFTER, **more}
    config = EngineConfig(str(MODEL), ranks=ranks, **settings)
    with other_ranks(config, lambda cause: os._exit(70)) as others:
        assert (others is None) == (ranks == 1)
        host, _ = load_host(config, others)
        yield host


class Caller:
    """Sends the commands of one call, whose session is open, and keeps the tokens of each of its replies."""

    def __init__(self, host: EngineHost, name: str, log: list[int]) -> None:
        self._host, self._name, self._turn = host, name, 0
        self._log = log
        self.said: list[tuple[int, ...]] = []

    @staticmethod
    def opened(host: EngineHost, name: str, begin: tuple[int, ...]) -> Caller:
        assert host.handle(records.Open(name, begin, 7, preamble=records.Preamble("", len(begin)))) == []
        return Caller(host, name, list(begin))

    def ask(self, tokens: tuple[int, ...], sampling: Sampling, *, stop_after: int | None = None) -> None:
        """A turn and its whole reply, or as much of it as is wanted: the rest is taken back while it is being made."""
        self._turn += 1
        self.said.append(())
        kept = len(self._log)
        self._hear(self._host.handle(records.Submit(self._name, self._turn, kept, tokens, sampling, max_tokens=24)))
        self._log += tokens
        while self._host.busy and (stop_after is None or len(self.said[-1]) < stop_after):
            self._hear(self._host.advance())
        self.said[-1] = self.said[-1][:stop_after]
        self._log += self.said[-1]
        self._hear(self._host.handle(records.Sync(self._name, len(self._log))))

    def fork(self, name: str, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """What a fork of the call answers."""
        self._host.handle(records.Fork(self._name, name))
        child = Caller(self._host, name, self._log.copy())
        child.ask(tokens, Sampling())
        self._host.handle(records.Close(name))
        return child.said[0]

    def _hear(self, events: list[records.Event]) -> None:
        for event in events:
            assert not isinstance(event, records.Failed), event
            if isinstance(event, records.Progress) and event.turn == self._turn:
                self.said[-1] += event.tokens


def conversations(host: EngineHost) -> list[tuple[int, ...]]:
    """Three calls that begin alike, in turn, with a reply that is broken off and a side question in each."""
    prompts = [tuple(prompt) for prompt in embedded_prompts(3)]
    begin, lines = prompts[0][:120], [prompt[-60:] for prompt in prompts]
    callers = [Caller.opened(host, f"c{number}", begin) for number in range(3)]
    while host.busy:
        host.advance()
    asides = []
    for line, sampling in zip(lines, (Sampling(), Sampling(0.8, seed=2), Sampling(0.9, top_p=0.9)), strict=True):
        for number, caller in enumerate(callers):
            caller.ask(line, sampling, stop_after=9 if number == 1 else None)
        asides.append(callers[0].fork("aside", lines[0][:20]))
    return [said for caller in callers for said in caller.said] + asides


@pytest.mark.parametrize("settings", [{}, STATIC], ids=["eager", "static"])
def test_two_ranks_say_what_one_says(settings: dict[str, Any]) -> None:
    with host_of(1) as host:
        alone = conversations(host)
    with host_of(2, **settings) as host:
        assert conversations(host) == alone
        assert host.hibernation is not None and host.prefixes is not None
        assert host.hibernation.counts.hibernated and host.hibernation.counts.woken_from_host
        assert host.prefixes.tokens_saved
    assert all(alone)


def test_what_cannot_be_shared_is_refused_before_anything_is_started() -> None:
    for ranks, device, message in (
        (0, "cpu", "ranks is 0; 1 or more were expected"),
        (3, "cpu", "num_heads 4 cannot be shared among 3 ranks"),
        (2, "cuda:90", "rank 1 would have GPU 91, and there are"),
    ):
        config = EngineConfig(str(MODEL), ranks=ranks, device=device)
        with pytest.raises(ModelError, match=message), other_ranks(config, lambda cause: None):
            raise AssertionError("was started")


def test_what_a_rank_cannot_load_is_said_by_its_name(tmp_path: Path) -> None:
    """The model disappears between the check and the loading."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text((MODEL / "config.json").read_text())
    config = EngineConfig(str(model), ranks=2)
    with (
        pytest.raises(ModelError, match=r"rank 1: ModelError: .*holds neither model\.safetensors"),
        other_ranks(config, lambda cause: os._exit(70)) as others,
    ):
        assert others is not None
        others.wait_until_loaded()


def test_a_rank_that_fails_is_gone() -> None:
    lost: list[str] = []
    heard = threading.Event()

    def on_lost(cause: str) -> None:
        lost.append(cause)
        heard.set()

    with other_ranks(EngineConfig(str(MODEL), ranks=2), on_lost) as others:
        assert others is not None
        others.wait_until_loaded()
        others.tell(Forget(99))
        assert heard.wait(60)
    assert lost == ["rank 1 of 2 has ended with status 1"]
