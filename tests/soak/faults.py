"""What goes wrong, and when: drawn from a seed, done one after the other."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tests.service.store.valkey import Valkey
from tests.soak.caller import Caller
from tests.soak.servers import LEASE_S, Server, holder

KILLED_IN_REPLY = "server killed in a reply"
KILLED = "server killed"
STORE_RESTARTED = "store killed and restarted"
FROZEN = "server frozen past its lease"
BOTH_KILLED = "store down, then a server killed"
CUT = "line cut"
SILENT = "line silent"

WAIT_FOR_REPLY_S = 60.0


@dataclass(frozen=True)
class Plan:
    """How often each thing happens, at least. lines: cut and silent ones together."""

    kills: int
    restarts: int
    freezes: int
    both: int
    lines: int

    def drawn(self, rng: random.Random) -> list[str]:
        """Those that happen one after the other, in order."""
        kinds = [KILLED_IN_REPLY] * ((self.kills + 1) // 2) + [KILLED] * (self.kills // 2)
        kinds += [STORE_RESTARTED] * self.restarts + [FROZEN] * self.freezes + [BOTH_KILLED] * self.both
        rng.shuffle(kinds)
        return kinds


class Trouble:
    """Makes it. callers: those on the phone. say: takes a line about each thing that is done. pace: all times are so
    many times as long.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        store: Valkey,
        callers: Sequence[Caller],
        rng: random.Random,
        say: Callable[[str], None],
        pace: float,
    ) -> None:
        self._servers = servers
        self._store = store
        self._callers = callers
        self._rng = rng
        self._say = say
        self._pace = pace
        self._starting: asyncio.Task[None] | None = None
        self.done: Counter[str] = Counter()

    async def make(self, kinds: Sequence[str]) -> None:
        """All of these, one after the other."""
        do: dict[str, Callable[[], Awaitable[None]]] = {
            KILLED_IN_REPLY: self._kill_in_reply,
            KILLED: self._kill,
            STORE_RESTARTED: self._restart_store,
            FROZEN: self._freeze,
            BOTH_KILLED: self._kill_both,
        }
        for kind in kinds:
            await asyncio.sleep(self._rng.uniform(0.2, 1.5))
            await do[kind]()
            self.done[kind] += 1
        await self._all_serving()

    async def trouble_lines(self, count: int) -> None:
        """Cut lines and silence them, so many times."""
        while self.done[CUT] + self.done[SILENT] < count:
            await asyncio.sleep(self._rng.uniform(0.3, 2.0))
            lines = self._rng.choice(self._servers).lines
            if self._rng.random() < 0.6:
                self.done[CUT] += lines.cut_one(self._rng)
            else:
                self.done[SILENT] += await lines.silence_one(self._rng, self._pace * self._rng.uniform(2.5, 4.0))

    async def _in_reply(self) -> Server:
        """A server that is in the middle of a reply; any, where none comes to that."""
        until = asyncio.get_running_loop().time() + WAIT_FOR_REPLY_S
        while asyncio.get_running_loop().time() < until:
            for caller in self._callers:
                found = holder(self._servers, caller.heard.session) if caller.speaking else None
                if found is not None:
                    return found
            await asyncio.sleep(0.002)
        return self._rng.choice(self._servers)

    async def _kill_in_reply(self) -> None:
        await self._all_serving()
        await self._kill_server(await self._in_reply())

    async def _kill(self) -> None:
        await self._all_serving()
        await self._kill_server(self._rng.choice(self._servers))

    async def _kill_server(self, server: Server) -> None:
        self._say(f"{server.lines.address} killed")
        await server.kill()
        self._starting = asyncio.create_task(server.start())

    async def _restart_store(self) -> None:
        away_s = self._rng.uniform(0.2, 4.0)
        self._say(f"store killed, away for {away_s:.1f} s")
        await asyncio.to_thread(self._store.kill)
        await asyncio.sleep(away_s)
        await asyncio.to_thread(self._store.start)

    async def _freeze(self) -> None:
        await self._all_serving()
        server = await self._in_reply()
        frozen_s = self._pace * (LEASE_S + self._rng.uniform(0.5, 3.0))
        self._say(f"{server.lines.address} frozen for {frozen_s:.1f} s")
        await server.freeze()
        await asyncio.sleep(frozen_s)
        await server.thaw()

    async def _kill_both(self) -> None:
        await self._all_serving()
        away_s = self._rng.uniform(0.5, 3.0)
        server = await self._in_reply()
        self._say(f"store killed, away for {away_s:.1f} s")
        await asyncio.to_thread(self._store.kill)
        await asyncio.sleep(self._rng.uniform(0.0, 0.5))
        await self._kill_server(server)
        await asyncio.sleep(away_s)
        await asyncio.to_thread(self._store.start)

    async def _all_serving(self) -> None:
        """The next one is hit when the last one has come back: two that are away together are another experiment."""
        if self._starting is not None:
            await self._starting
