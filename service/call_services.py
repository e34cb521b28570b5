"""What all calls on one model share: the engine, the store, telemetry and the configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from engine import records
from engine.constraint import Constraint
from engine.text.chat import Chat
from service import client_events as events
from service.call_state import CallState
from service.config import CallConfig, ResumeConfig
from service.conversation import Conversation
from service.mirror import Repeat
from service.security.settings import TenantConfig
from service.signing import Signing
from service.store import CallKey, Store
from service.telemetry import Telemetry

if TYPE_CHECKING:
    from service.call import Call

Record = records.Expected | records.Progress | records.Ended | records.Failed
"""What the engine says about one generation."""


Later = Callable[[float, Callable[[], None]], Callable[[], None]]
"""Runs something in so many seconds; returns what calls that off."""


def on_event_loop(seconds: float, work: Callable[[], None]) -> Callable[[], None]:
    """``Later`` by the running event loop."""
    return asyncio.get_running_loop().call_later(seconds, work).cancel


class EnginePort(Protocol):
    """What a call needs of ``service.engine_client.EngineClient``."""

    @property
    def serving(self) -> bool: ...
    @property
    def beat(self) -> records.Beat | None: ...
    def open(
        self,
        session: str,
        tokens: tuple[int, ...],
        seed: int,
        on_failed: Callable[[records.Failed], None],
        constraint: Constraint | None = None,
        preamble: records.Preamble | None = None,
    ) -> None: ...
    def sync(
        self,
        session: str,
        keep: int,
        tokens: tuple[int, ...],
        ahead: int = 0,
        on_prefilled: Callable[[records.Prefilled], None] | None = None,
    ) -> None: ...
    def fork(self, session: str, child: str) -> None: ...
    def wake(self, session: str) -> None: ...
    def prepare(self, session: str, constraint: Constraint) -> None: ...
    def submit(self, command: records.Submit, sink: Callable[[Record], None], told: Repeat | None = None) -> None: ...
    def release(self, session: str, turn: int, deadline: float, speaking_rate: float = 0.0) -> None: ...
    def hold(self, session: str, held: bool) -> None: ...
    def close(self, session: str) -> None: ...


_MEMORY = 0.8
"""Share of what was known of a model's speed that one more answer leaves."""


@dataclass(eq=False)
class Resident:
    """A model that is served in an engine process of its own, for calls whose model is late.

    name: as clients know it. first_token_s: that it has needed lately, from being asked; None before it ever was.
    """

    name: str
    engine: EnginePort
    chat: Chat
    max_context_tokens: int
    first_token_s: float | None = None

    def answered(self, seconds: float) -> None:
        """A first token has taken so long."""
        known = seconds if self.first_token_s is None else self.first_token_s
        self.first_token_s = _MEMORY * known + (1.0 - _MEMORY) * seconds


@dataclass(frozen=True)
class CallServices:
    """What all calls on one model share. model: the name that clients see. residents: the other models, by theirs.

    live: the calls of this process, whether their clients are there or may come back. tenants: limits of single ones.
    """

    engine: EnginePort
    new_conversation: Callable[[events.Open], Conversation]
    restored_conversation: Callable[[CallState], Conversation]
    store: Store
    signing: Signing
    telemetry: Telemetry
    config: CallConfig
    model: str
    max_context_tokens: int
    later: Later = on_event_loop
    residents: Mapping[str, Resident] = field(default_factory=dict)
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    tenants: Mapping[str, TenantConfig] = field(default_factory=dict)
    live: dict[CallKey, Call] = field(default_factory=dict)

    def max_events_per_s(self, tenant: str) -> int:
        """That a client of this tenant may send."""
        own = self.tenants.get(tenant)
        return self.config.max_events_per_s if own is None else own.max_events_per_s or self.config.max_events_per_s

    def engine_serving(self) -> bool:
        """Whether the calls' own model is there."""
        return self.engine.serving
