"""What must hold of a call that was held through all sorts of trouble."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

import redis.asyncio

from service.signing import Signing
from tests.soak.caller import Heard


@dataclass
class Verdict:
    """The sums over all calls. wrong: every violation, in words."""

    calls: int = 0
    turns: int = 0
    events: int = 0
    resumes: int = 0
    resumed_calls: int = 0
    stored_records: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, heard: Heard, wanted: Heard) -> None:
        """Compare a call with the same one that nothing happened to."""
        self.calls += 1
        self.turns += len(heard.turns)
        self.events += heard.events
        self.resumes += heard.resumes
        self.resumed_calls += heard.resumes > 0
        self.wrong += [f"{heard.session}: {what}" for what in heard.wrong]
        for number, (found, expected) in enumerate(zip(heard.turns, wanted.turns, strict=True), 1):
            if found != expected:
                self.wrong.append(f"{heard.session}: turn {number} is {found}, uninterrupted it is {expected}")

    async def compare(self, heard: Heard, client: redis.asyncio.Redis, signing: Signing, secret: str) -> None:
        """Look for records in the store that the client was not told of: a server that lost the call wrote them."""
        stored = await client.hgetall(f"firstword:{{{_name(heard.session, secret)}}}:log")
        for key, value in stored.items():
            seq, record = int(key), bytes(value)[1:]  # behind the mark that it is not encrypted
            self.stored_records += 1
            if seq > heard.last_seq or heard.records.get(seq) == record:
                continue
            if b'"prev":0' in signing.payload(record):
                continue  # the whole call, written for a store that had lost it
            self.wrong.append(f"{heard.session}: the store has another record of event {seq} than the client")


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
        f"| words lost or said twice, replies that differ, writes of a server that had lost the call | {lost} |",
    ]
    return "\n".join([*lines, *(f"- {what}" for what in verdict.wrong[:20])])
