"""Two places for servers behind one store, each of which is of one revision or the other."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.e2e.pods import Pod
from tests.e2e.server import ROOT
from tests.rolling.revisions import Revision

SETTINGS = {
    "FIRSTWORD_STORE__LEASE_S": "6",
    "FIRSTWORD_STORE__TRUST_AFTER_S": "2",
    "FIRSTWORD_SERVER__STOP_GRACE_S": "6",
    "FIRSTWORD_ENGINE__POOL_TOKENS": "16384",
}
"""What every revision that has a store knows."""


@dataclass
class _Place:
    """revision: of the server that is there."""

    pod: Pod
    revision: Revision


class Fleet:
    """The servers. say: takes a line about each thing that is done."""

    def __init__(self, store_url: str, say: Callable[[str], None]) -> None:
        self._settings = {**SETTINGS, "FIRSTWORD_STORE__URL": store_url}
        self._say = say
        self._places: list[_Place] = []
        self.replaced = 0
        self.taken_over: dict[str, int] = {}
        """Calls that were taken over, by the revision that took them."""

    @property
    def addresses(self) -> list[str]:
        return [place.pod.address for place in self._places]

    async def start(self, revision: Revision, count: int) -> None:
        for _ in range(count):
            self._places.append(_Place(Pod(self._settings, root=revision.root), revision))
        for place in self._places:
            await asyncio.to_thread(place.pod.wait_until_serving)

    async def become(self, revision: Revision, rng: random.Random) -> None:
        """One server after the other is another revision's: most leave in order, some are killed."""
        for place in self._places:
            killed = rng.random() < 0.25
            self._say(f"{place.pod.address}: {place.revision.name} {'killed' if killed else 'told to leave'}")
            if killed:
                await asyncio.to_thread(place.pod.kill)
            else:
                place.pod.terminate()
                await asyncio.to_thread(place.pod.process.process.wait, 120)
            self._count(place)
            place.revision = revision
            place.pod.start_again(revision.root)
            await asyncio.to_thread(place.pod.wait_until_serving)
            self._say(f"{place.pod.address}: {revision.name} serves")
            self.replaced += 1
            await asyncio.sleep(rng.uniform(1.0, 4.0))

    async def end(self) -> None:
        for place in self._places:
            await asyncio.to_thread(place.pod.end)
            self._count(place)

    def _count(self, place: _Place) -> None:
        found = len(place.pod.events("call taken over"))
        self.taken_over[place.revision.name] = self.taken_over.get(place.revision.name, 0) + found


class CallerProcess:
    """Callers with a revision's client. take: called with each line that it writes."""

    def __init__(self, revision: Revision, addresses: Sequence[str], *options: str) -> None:
        self.revision = revision
        path = os.pathsep.join([str(revision.client_path()), str(ROOT)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.rolling.callers", *addresses, *options],
            cwd="/",  # else this tree's client would be found first
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    async def lines(self, take: Callable[[str], None]) -> int:
        """Read to the end; returns the exit status."""
        assert self._process.stdout is not None
        while line := await asyncio.to_thread(self._process.stdout.readline):
            take(line)
        return await asyncio.to_thread(self._process.wait)

    def begin_no_more(self) -> None:
        """Calls that are open are held to their end."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
