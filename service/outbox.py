"""What a call has said and its stream has not taken yet, and what follows where a client does not read.

Knows envelopes as things to be written in order; knows no gRPC and no call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace

from service.config import ServerConfig
from service.problems import Problem
from service.server_events import Envelope, Heartbeat

CAUGHT_UP = 4
"""A client has caught up when this part of what it may be behind is left: a reply is not held and let go event by
event.
"""


class Outbox:
    """The events of one call on their way out.

    on_slow: told True when more are unsent than ``hold_at_events``, and False when the client has caught up.
    given_up: set when ``max_queued_events`` are unsent, or one is not taken within ``unread_s``: what comes then is
    lost, and so the call must be. problem: what the stream ends with; None for OK.
    """

    def __init__(self, config: ServerConfig, on_slow: Callable[[bool], None]) -> None:
        self._config = config
        self._on_slow = on_slow
        self._queue: deque[Envelope] = deque()
        self._news = asyncio.Event()
        self._slow = False
        self._ended = False
        self.problem: Problem | None = None
        self.given_up = asyncio.Event()

    @property
    def slow(self) -> bool:
        """Whether the client is too far behind."""
        return self._slow

    def put(self, envelope: Envelope) -> None:
        """Send an event as soon as the stream takes it."""
        if len(self._queue) >= self._config.max_queued_events:
            self.given_up.set()
            return
        self._queue.append(envelope)
        self._news.set()
        if not self._slow and len(self._queue) > self._config.hold_at_events:
            self._slow = True
            self._on_slow(True)

    def end(self, problem: Problem | None) -> None:
        """Nothing more will be put."""
        self._ended = True
        self.problem = problem
        self._news.set()

    async def drain(self, write: Callable[[Envelope], Awaitable[None]]) -> None:
        """Write everything, and heartbeats where there is nothing, until the end. write: returns when the stream has
        taken the event.
        """
        last: Envelope | None = None
        while True:
            while self._queue:
                last = self._queue.popleft()
                try:
                    async with asyncio.timeout(self._config.unread_s):
                        await write(last)
                except TimeoutError:
                    self.given_up.set()
                    return
                if self._slow and len(self._queue) <= self._config.hold_at_events // CAUGHT_UP:
                    self._slow = False
                    self._on_slow(False)
            if self._ended:
                return
            self._news.clear()
            try:
                async with asyncio.timeout(self._config.heartbeat_s if last and self._config.heartbeat_s else None):
                    await self._news.wait()
            except TimeoutError:
                assert last is not None
                if not self._queue:  # with the number of the last event, which every client passes over
                    self._queue.append(replace(last, event=Heartbeat(), record=b""))
