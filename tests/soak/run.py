"""Holds calls while things go wrong, until enough has gone wrong."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import redis.asyncio

from service.signing import Signing
from tests.e2e.pods import SECRET, client_of
from tests.service.store.valkey import Valkey
from tests.soak.caller import Caller, Heard
from tests.soak.checker import Verdict
from tests.soak.faults import Plan, Trouble
from tests.soak.servers import LEASE_S, servers

RESUME_TIMEOUT_S = 300.0


async def soak(
    plan: Plan,
    *,
    seed: int,
    callers: int,
    scripts: int,
    count: int = 2,
    local: bool = False,
    pace: float = 1.0,
    say: Callable[[str], None] = print,
) -> tuple[Verdict, Trouble]:
    """``count`` servers, ``callers`` calls at a time, of ``scripts`` different ones. local: servers in this process.

    pace: above 1 on a busy machine, whose servers are else taken for frozen ones: all times are so many times as long.
    """
    rng = random.Random(seed)
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="firstword-soak-"))
        # A store that survives a kill but for its last second, as one with the usual settings does.
        store = Valkey(Path(directory), appendonly="yes", appendfsync="everysec")
        store.start()
        stack.callback(store.kill)
        made = await stack.enter_async_context(servers(count, store.url, pace * LEASE_S, local=local))
        addresses = [server.lines.address for server in made]
        say(f"{count} servers are serving")
        wanted = await _undisturbed(addresses, scripts, pace)
        say(f"{scripts} calls held undisturbed, {sum(len(heard.turns) for heard in wanted)} turns")
        on_the_phone: list[Caller] = []
        trouble = Trouble(made, store, on_the_phone, rng, say, pace)
        verdict, signing = Verdict(), Signing((SECRET,), 3600.0)
        books = await stack.enter_async_context(redis.asyncio.Redis.from_url(store.url))
        over = asyncio.Event()

        async def hold(number: int) -> None:
            while not over.is_set():
                async with client_of(addresses, pace, resume_timeout_s=RESUME_TIMEOUT_S) as client:
                    caller = Caller(client, number % scripts)
                    on_the_phone.append(caller)
                    heard = await caller.run()
                on_the_phone.remove(caller)
                verdict.add(heard, wanted[number % scripts])
                await _compare(verdict, heard, books, signing)
                number += callers

        async with asyncio.TaskGroup() as group:
            for number in range(callers):
                group.create_task(hold(number))
            await asyncio.gather(trouble.make(plan.drawn(rng)), trouble.trouble_lines(plan.lines))
            over.set()
        return verdict, trouble


async def _undisturbed(addresses: Sequence[str], scripts: int, pace: float) -> list[Heard]:
    """Each call, held when nothing happens."""
    async with client_of(addresses, pace) as client:
        heard = [await Caller(client, script).run() for script in range(scripts)]
    for one in heard:
        assert not one.wrong, one.wrong
        assert not one.resumes
    return heard


async def _compare(verdict: Verdict, heard: Heard, books: redis.asyncio.Redis, signing: Signing) -> None:
    """Once the store is there."""
    until = time.monotonic() + RESUME_TIMEOUT_S
    while True:
        try:
            await verdict.compare(heard, books, signing, SECRET)
            return
        except (redis.exceptions.RedisError, OSError):
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.2)
