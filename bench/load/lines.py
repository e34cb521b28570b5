"""What a simulated caller speaks through: one call to the service, whichever way it goes.

Moments are ``time.perf_counter()`` seconds of this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from bench.load.scripts import Script
from evals.calls import Heard


@dataclass(frozen=True)
class Text:
    """More of a reply's text, with the tokens behind it. clause_ends: offsets into the reply's text."""

    at: float
    text: str
    tokens: int
    clause_ends: tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """The reply calls a tool. handle: what the line needs to take the result."""

    at: float
    name: str
    arguments: str
    handle: Any


@dataclass(frozen=True)
class Account:
    """The service's own account of a turn.

    first_token_s: from its commit, on the service's clock; None: there was none. modes: steps by who drafted them.
    used_tokens: of the context, now.
    """

    tokens: int = 0
    first_token_s: float | None = None
    answered_ahead: bool = False
    modes: Mapping[str, int] = field(default_factory=dict)
    used_tokens: int = 0


@dataclass(frozen=True)
class Over:
    """Nothing more comes of the reply. error: the reason by its name, or empty."""

    at: float
    account: Account = Account()
    error: str = ""


Reply = asyncio.Queue[Text | Asked | Over]
"""The events of one reply, in order; the last one is ``Over``."""


class Refused(Exception):
    """The call was not let in. retry_s: when to try again; None: the service did not say."""

    def __init__(self, reason: str, retry_s: float | None) -> None:
        super().__init__(reason)
        self.retry_s = retry_s


class Line(Protocol):
    """One open call. No method waits for the service; whatever it has against an event is counted in ``errors``."""

    @property
    def errors(self) -> list[str]: ...
    async def speech_started(self) -> None: ...
    async def hear(self, heard: Heard) -> None:
        """Pass on what the recogniser says, finals apart."""
        ...

    async def final(self, text: str) -> Reply: ...
    async def interrupt(self, code_points: int) -> None:
        """The caller spoke over the newest reply, of which so much was heard."""
        ...

    async def tool_result(self, asked: Asked, output: str) -> None: ...


class Driver(Protocol):
    """A service under one contender's settings, and the way to it."""

    def line(self, script: Script) -> AbstractAsyncContextManager[Line]:
        """A call that is open inside the block. Entering raises Refused."""
        ...


StartDriver = Callable[[Mapping[str, str]], AbstractAsyncContextManager[Driver]]
"""Starts a service with these environment variables, for as long as the block runs."""
