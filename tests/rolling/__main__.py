"""``make rolling``: one revision of the service takes another's place, and back, while clients of both hold calls.

Whatever a call has heard is compared with the same call that nothing happened to, word for word.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import redis.asyncio

from service.signing import Signing
from tests.e2e.pods import SECRET
from tests.rolling.callers import of_json
from tests.rolling.fleet import CallerProcess, Fleet
from tests.rolling.revisions import Revision, checked_out, default_base, this_tree
from tests.service.store.valkey import Valkey
from tests.soak.caller import Heard
from tests.soak.checker import Verdict, report

Say = Callable[[str], None]


def main() -> int:
    """The exit status: 0 where nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.rolling", description=__doc__)
    parser.add_argument("--base", default="", help="the other revision; by default the last tag, or else HEAD~1")
    parser.add_argument("--rounds", type=int, default=2, help="upgrades, each with the way back")
    parser.add_argument("--callers", type=int, default=2, help="calls at a time with each client")
    parser.add_argument("--scripts", type=int, default=4, help="different calls")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    given = parser.parse_args()
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {line}", flush=True)

    base = checked_out(given.base or default_base())
    say(f"seed {given.seed}; {base.name} and this tree")
    verdict, counts = asyncio.run(_upgraded(base, this_tree(), given, say))
    print(report(verdict, counts, time.monotonic() - began, given.seed))
    return 1 if verdict.wrong else 0


async def _upgraded(base: Revision, new: Revision, given: argparse.Namespace, say: Say) -> tuple[Verdict, Counter[str]]:
    """What came of the calls, and how often what was done."""
    rng, verdict, counts = random.Random(given.seed), Verdict(), Counter[str]()
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="firstword-rolling-"))
        store = Valkey(Path(directory), appendonly="yes", appendfsync="everysec")
        store.start()
        stack.callback(store.kill)
        books = await stack.enter_async_context(redis.asyncio.Redis.from_url(store.url))
        fleet = Fleet(store.url, say)
        stack.push_async_callback(fleet.end)
        await fleet.start(base, 2)
        wanted = await _undisturbed(base, fleet.addresses, given.scripts)
        say(f"{base.name} serves; {given.scripts} calls held undisturbed, {sum(len(w.turns) for w in wanted)} turns")
        over: list[tuple[str, Heard]] = []
        options = ("--callers", str(given.callers), "--scripts", str(given.scripts))
        callers = [CallerProcess(revision, fleet.addresses, *options) for revision in (base, new)]
        for process in callers:
            stack.callback(process.end)
        async with asyncio.TaskGroup() as group:
            reading = [group.create_task(_read(process, over)) for process in callers]
            for _ in range(given.rounds):
                await fleet.become(new, rng)
                _check_same(await _undisturbed(new, fleet.addresses, given.scripts), wanted)
                await fleet.become(base, rng)
            for process in callers:
                process.begin_no_more()
        statuses = [task.result() for task in reading]
        for revision, heard in over:
            counts[f"calls of a client of {revision}"] += 1
            verdict.add(heard, wanted[heard.script])
            await verdict.compare(heard, books, Signing((SECRET,), 3600.0), SECRET)
        verdict.wrong += [f"the callers' process ended with {status}" for status in statuses if status]
    counts["servers replaced"] = fleet.replaced
    for name, taken in fleet.taken_over.items():
        counts[f"calls taken over by {name}"] = taken
    return verdict, counts


async def _read(process: CallerProcess, over: list[tuple[str, Heard]]) -> int:
    return await process.lines(lambda line: over.append((process.revision.name, of_json(json.loads(line)))))


async def _undisturbed(revision: Revision, addresses: Sequence[str], scripts: int) -> list[Heard]:
    """Each call, held when nothing happens to it."""
    found: list[Heard] = []
    process = CallerProcess(revision, addresses, "--once", "--callers", "1", "--scripts", str(scripts))
    try:
        status = await process.lines(lambda line: found.append(of_json(json.loads(line))))
    finally:
        process.end()
    assert status == 0 and len(found) == scripts, f"the callers of {revision.name} ended with {status}"
    assert not any(heard.wrong or heard.resumes for heard in found), [heard.wrong for heard in found]
    return sorted(found, key=lambda heard: heard.script)


def _check_same(found: Sequence[Heard], wanted: Sequence[Heard]) -> None:
    """The two revisions must say the same by themselves, or nothing could be compared."""
    for one, other in zip(found, wanted, strict=True):
        if one.turns != other.turns:
            raise SystemExit(f"the revisions differ by themselves, in call {one.script}: {one.turns}, {other.turns}")


if __name__ == "__main__":
    sys.exit(main())
