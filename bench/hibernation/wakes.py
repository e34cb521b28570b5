"""First tokens of calls that went cold, beside those of calls that did not: an engine's host in this process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import harness
from engine import records
from engine.config import EngineConfig
from engine.engine import Engine
from engine.grammar.library import GrammarLibrary
from engine.hibernation import Hibernation
from engine.host import EngineHost
from engine.load import load_proposer, load_target_for, reader_of
from engine.models.decoder import Decoder
from engine.policy import FixedPolicy
from engine.sampling import Sampling
from engine.schedule import DeadlineScheduler
from engine.text.codec import Codec

CONTEXTS = (200, 800)
LINE_TOKENS = 16
REPLY_TOKENS = 12
NODES = 8
OVER_CACHES = 4
"""Times the CPU's largest cache that is read before a reply is timed."""
LEAST_READ = 64 << 20


@dataclass(frozen=True)
class Way:
    """How a call went cold, and whether it was told that it would be wanted."""

    kept: str
    host_bytes: int
    announced: bool

    @property
    def name(self) -> str:
        return f"{self.kept}, {'announced' if self.announced else 'not announced'}"


HOST, LOG = "host memory", "token log"
WAYS = (
    Way(HOST, 1 << 30, announced=True),
    Way(HOST, 1 << 30, announced=False),
    Way(LOG, 0, announced=True),
    Way(LOG, 0, announced=False),
)


def host_for(model: Path, context: int, host_bytes: int) -> EngineHost:
    """One whose pool holds two calls of ``context`` tokens and half of a third."""
    pool_tokens = 5 * (context + LINE_TOKENS + REPLY_TOKENS + 2 * NODES) // 2
    config = EngineConfig(str(model), f"suffix+eagle3:{model / 'eagle3'}", pool_tokens=pool_tokens)
    target = load_target_for(config)
    engine = Engine(target, load_proposer(config, target), FixedPolicy(NODES), coupled=config.couples)
    return host_of(model, engine, target, Hibernation(engine, host_bytes))


def host_of(model: Path, engine: Engine, target: Decoder, hibernation: Hibernation | None, **more: Any) -> EngineHost:
    codec = Codec.load(model, target.vocab_size)
    grammars = GrammarLibrary(codec, target.vocab_size, target.device)
    return EngineHost(
        engine, DeadlineScheduler(256), partial(reader_of, codec), grammars, hibernation=hibernation, **more
    )


def run(host: EngineHost) -> list[records.Event]:
    """All that the host says until it has nothing to do."""
    events: list[records.Event] = []
    while host.busy:
        events += host.advance()
    return events


def timed_reply(host: EngineHost, name: str, log: int, line: tuple[int, ...]) -> tuple[float, float]:
    """Seconds to the first token of a turn, and to the last of ``REPLY_TOKENS``. Of this thread, which does all the
    work: others have the machine as well.
    """
    started, first = time.thread_time(), 0.0
    host.handle(records.Submit(name, 1, log, line, Sampling(), REPLY_TOKENS))
    while (turn := host.engine.session(name).turn) is not None:
        host.advance()
        if not first and turn.num_tokens:
            first = time.thread_time() - started
    return first, time.thread_time() - started


@dataclass
class Pair:
    """A cold call's seconds and a warm one's: to the first token, to the last; and those that the wake took before.
    same: both said the same.
    """

    cold: tuple[float, float]
    warm: tuple[float, float]
    waking: float
    same: bool


class Caches:
    """The CPU's: what was copied a moment ago is still in them, which it is not for who has spoken for seconds."""

    def __init__(self) -> None:
        sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        largest = max((_bytes(size.read_text()) for size in sizes), default=0)
        self.read_bytes = max(LEAST_READ, OVER_CACHES * largest)
        self._other = torch.ones(self.read_bytes // 8, dtype=torch.int64)

    def clear(self) -> None:
        """Read something else that is larger than all of them."""
        self._other.sum()


def _bytes(size: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    number, unit = size.strip()[:-1], size.strip()[-1]
    return int(number) * units[unit] if unit in units else int(size)


def one_round(
    host: EngineHost, way: Way, prompt: tuple[int, ...], line: tuple[int, ...], caches: Caches, *, cold_first: bool
) -> Pair:
    for name in ("cold", "warm", "other"):  # the third has no room until the first, asked for longest ago, has moved
        host.handle(records.Open(name, prompt))
        run(host)
    session, moved = host.engine.session("cold"), len(prompt) - 1
    assert (session.cache.length == 0) if way.host_bytes == 0 else not session.resident
    assert host.engine.session("warm").resident and host.engine.session("warm").cache.length == moved
    host.handle(records.Close("other"))
    started = time.thread_time()
    if way.announced:
        host.handle(records.Wake("cold"))
        run(host)
    waking, seconds = time.thread_time() - started, {}
    for name in ("cold", "warm") if cold_first else ("warm", "cold"):
        caches.clear()
        seconds[name] = timed_reply(host, name, len(prompt), line)
        run(host)
    same = host.engine.session("cold").tokens == host.engine.session("warm").tokens
    for name in ("cold", "warm"):
        host.handle(records.Close(name))
    run(host)
    return Pair(seconds["cold"], seconds["warm"], waking, same)


def measure(model: Path, context: int, rounds: int) -> dict[str, list[Pair]]:
    """By way, of calls of so many tokens."""
    gold = harness.prompts(harness.load_tokenizer(model), harness.HELD_OUT, 40)
    tokens, caches = [token for prompt in gold for token in prompt.ids], Caches()
    hosts = {size: host_for(model, context, size) for size in {way.host_bytes for way in WAYS}}
    found: dict[str, list[Pair]] = {way.name: [] for way in WAYS}
    for number in range(rounds + 1):
        at = 37 * number
        prompt, line = tuple(tokens[at : at + context]), tuple(tokens[at + context : at + context + LINE_TOKENS])
        for way in WAYS:
            pair = one_round(hosts[way.host_bytes], way, prompt, line, caches, cold_first=number % 2 == 0)
            if number:  # the first warms up
                found[way.name].append(pair)
    return found
