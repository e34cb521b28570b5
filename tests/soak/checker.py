"""What must hold of a call that was held through all sorts of trouble."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import redis.asyncio

from service.call_records import read
from service.signing import Signing
from tests.soak.caller import Heard

CATCH_UP_S = 10.0
"""How long the store may take to hear of a call's end, when it is there."""


@dataclass
class Verdict:
    """The sums over all calls. behind: calls whose last holder died before the store, which had been away, heard of it.
    wrong: every violation, in words.
    """

    calls: int = 0
    turns: int = 0
    events: int = 0
    resumes: int = 0
    resumed_calls: int = 0
    stored_records: int = 0
    behind: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, heard: Heard, wanted: Heard) -> None:
        """Compare a call with the same one that nothing happened to."""
        self.calls += 1
        self.turns += len(heard.turns)
        self.events += heard.events
        self.resumes += heard.resumes
        self.resumed_calls += heard.resumes > 0
        self.wrong += [f"{heard.session}: {what}" for what in heard.wrong]
        if heard.turns and not heard.generations:
            self.wrong.append(f"{heard.session}: has {len(heard.turns)} turns, and no event was recorded")
        for number, (found, expected) in enumerate(zip(heard.turns, wanted.turns, strict=True), 1):
            if heard.texts.get(number, "") != found[0]:
                self.wrong.append(f"{heard.session}: turn {number} was not recorded as it was heard")
            if found != expected:
                self.wrong.append(f"{heard.session}: turn {number} is {found}, uninterrupted it is {expected}")

    async def compare(self, heard: Heard, client: redis.asyncio.Redis, signing: Signing, secret: str) -> None:
        """Look for records in the store that the client was not told of: a server that lost the call wrote them.

        A store that was away when the call changed hands has not heard of it before its new holder has written. One
        that was killed never does: then the store still has what the client knows to be superseded. So it has where the
        new holder had not written before it lost the call too: the next one voids what is behind its own place alone.
        """
        held, stored = await _of_store(heard, client, secret)
        self.behind += held < max(heard.generations.values(), default=0)
        records = {int(key): bytes(value)[1:] for key, value in stored.items()}  # behind the mark: it is not encrypted
        for seq, record in records.items():
            self.stored_records += 1
            if seq > heard.last_seq or heard.records.get(seq) == record:
                continue
            if b'"prev":0' in signing.payload(record):
                continue  # the whole call, written for a store that had lost it
            wrote, told = read(signing, record).generation, heard.generations.get(seq, 0)
            if wrote <= held and wrote < told and (told > held or (told < held and not _has(records, told, signing))):
                continue
            self.wrong.append(f"{heard.session}: the store has another record of event {seq} than the client")


def _has(records: Mapping[int, bytes], generation: int, signing: Signing) -> bool:
    """Whether anything of a generation is there."""
    return any(read(signing, record).generation == generation for record in records.values())


async def _of_store(heard: Heard, client: redis.asyncio.Redis, secret: str) -> tuple[int, dict[bytes, bytes]]:
    """The generation that the store knows of, and its records: once it has heard of the call's end, if it ever does."""
    keys = [f"firstword:{{{_name(heard.session, secret)}}}:{kind}" for kind in ("lease", "log")]
    until = time.monotonic() + CATCH_UP_S
    while True:
        pipeline = client.pipeline(transaction=True)
        for name in keys:
            pipeline.hgetall(name)
        lease, stored = await pipeline.execute()
        if b"closed" in lease or time.monotonic() > until:
            return int(lease.get(b"gen", 0)), stored
        await asyncio.sleep(0.1)


def _name(session: str, secret: str) -> str:
    return hmac.new(secret.encode(), f"call\0\0{session}".encode(), hashlib.sha256).hexdigest()[:40]


def report(verdict: Verdict, faults: Mapping[str, int], seconds: float, seed: int) -> str:
    """Markdown."""
    lines = [f"Seed {seed}, {seconds / 60:.1f} minutes.", "", "| fault | times |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in faults.items()]
    lost = len(verdict.wrong)
    lines += [
        "",
        "| | |",
        "|---|---|",
        f"| calls held to their end | {verdict.calls} |",
        f"| of them resumed | {verdict.resumed_calls}, {verdict.resumes} times |",
        f"| turns, each equal to the uninterrupted call's | {verdict.turns} |",
        f"| events received, each once and in order | {verdict.events} |",
        f"| records in the store that were compared | {verdict.stored_records} |",
        f"| calls whose last holder died before the store had heard of it | {verdict.behind} |",
        f"| words lost or said twice, replies that differ, writes of a server that had lost the call | {lost} |",
    ]
    return "\n".join([*lines, *(f"- {what}" for what in verdict.wrong[:20])])
