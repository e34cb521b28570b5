"""Plays many scripts at the same time, and sees that the servers are then as they were before."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import grpc

from firstword.v1 import call_service_pb2_grpc
from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import options_pb2 as options_pb
from tests.e2e.server import CallStream
from tests.fuzz.answers import Tally
from tests.fuzz.player import Player
from tests.fuzz.script import Script
from tests.fuzz.scripts import PODS, drawn
from tests.fuzz.servers import FuzzedPod, fuzzed_pods

AT_ONCE = 24
SETTLE_S = 60.0
STUCK_S = 300.0
"""Without a finished script: the process itself hangs, says where, and dies."""


class _Errors(logging.Handler):
    """Whatever is logged as an error was not foreseen: here no engine dies and no store is away."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        facts = (f"{name} {record.__dict__[name]}" for name in ("event", "cause", "detail") if name in record.__dict__)
        self.found.append(": ".join((self.format(record), *facts)))


@contextmanager
def _errors() -> Iterator[list[str]]:
    handler = _Errors()
    logging.getLogger().addHandler(handler)
    try:
        yield handler.found
    finally:
        logging.getLogger().removeHandler(handler)


class _Block:
    """playing: seeds of the scripts that are being played."""

    def __init__(self, pods: Sequence[FuzzedPod], channels: Sequence[grpc.aio.Channel], tally: Tally) -> None:
        self._pods = pods
        self._channels = channels
        self._tally = tally
        self._armed = 0.0
        self.playing: set[int] = set()

    async def play(self, scripts: Iterable[Script], at_once: int) -> None:
        before, tasks = [await self._good_call(number) for number in range(len(self._pods))], len(asyncio.all_tasks())
        waiting = iter(scripts)
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(self._one_by_one(waiting))
        await self._settled(tasks)
        for number, wanted in enumerate(before):
            if (said := await self._good_call(number)) != wanted:
                self._tally.findings.append((-1, f"a call in order is answered {said!r}, before it was {wanted!r}"))

    async def _one_by_one(self, scripts: Iterator[Script]) -> None:
        for script in scripts:
            self.playing.add(script.seed)
            wrong = await Player(self._channels, script, self._tally).play()
            self.playing.discard(script.seed)
            self._tally.findings += [(script.seed, what) for what in wrong]
            self._tally.scripts += 1
            self._alive()

    def _alive(self) -> None:
        """A script is over: the process does not hang."""
        if (now := time.monotonic()) > self._armed + STUCK_S / 10:
            self._armed = now
            faulthandler.dump_traceback_later(STUCK_S, exit=True)

    async def _settled(self, tasks: int) -> None:
        """Nothing is left of any call. Tasks of gRPC that wait for the next stream are no call's."""
        until = asyncio.get_running_loop().time() + SETTLE_S
        while True:
            left = ", ".join(filter(None, (pod.left_behind() for pod in self._pods)))
            more = len(asyncio.all_tasks()) - tasks
            if not left and more <= 0:
                return
            if asyncio.get_running_loop().time() > until:
                names = sorted(str(task.get_coro()) for task in asyncio.all_tasks())
                self._tally.findings.append((-1, f"left behind: {left}; {more} tasks of {names}"))
                return
            await asyncio.sleep(0.05)

    async def _good_call(self, pod: int) -> str:
        """What a call in order is answered."""
        call = CallStream(call_service_pb2_grpc.CallServiceStub(self._channels[pod]))  # type: ignore[arg-type]
        sampling = options_pb.Sampling(temperature=0.7, max_output_tokens=12)
        await call.send(open=client_pb.Open(system_prompt="You answer the phone.", seed=3, sampling=sampling))
        await call.expect("opened")
        text = (await call.say("When do you open on Saturday?")).text
        await call.close()
        return text


async def play_block(scripts: Sequence[Script], at_once: int = AT_ONCE) -> Tally:
    """What came of the scripts, played so many at once against servers of their own."""
    tally = Tally()
    block: _Block | None = None

    def crashed(trace: str) -> None:
        seeds = sorted(block.playing) if block is not None else []
        tally.findings.append((seeds[0] if len(seeds) == 1 else -1, f"the engine failed, seeds {seeds}: {trace}"))

    try:
        with _errors() as errors:
            async with fuzzed_pods(PODS, crashed) as pods, _channels(pods) as channels:
                block = _Block(pods, channels, tally)
                await block.play(scripts, at_once)
            only = scripts[0].seed if len(scripts) == 1 else -1
            tally.findings += [(only, f"logged: {error}") for error in errors]
    finally:
        faulthandler.cancel_dump_traceback_later()
    return tally


def play_seeds(seeds: range) -> Tally:
    """What came of the scripts of these seeds. Runs an event loop of its own."""
    logging.getLogger("service").setLevel(logging.ERROR)
    return asyncio.run(play_block([drawn(seed) for seed in seeds]))


@asynccontextmanager
async def _channels(pods: Sequence[FuzzedPod]) -> AsyncIterator[list[grpc.aio.Channel]]:
    assert all(pod.server is not None for pod in pods)
    found = [grpc.aio.insecure_channel(f"127.0.0.1:{pod.server.port}") for pod in pods if pod.server is not None]
    try:
        yield found
    finally:
        for channel in found:
            await channel.close()
