"""Calls that come back where no server can be reached by its own address."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from firstword import Client, TextDelta
from firstword.stream import MOST_IN_VAIN
from tests.e2e.lines import Lines
from tests.firstword.receptionist import LINES
from tests.service.pods import LocalPod, local_pods
from tests.service.store.valkey import Valkey, valkey
from tests.service.test_takeover import LONG
from tests.service.waiting import until

HEADER = "x-firstword-pod"
IN_TIME_S = 30.0


@pytest.fixture
def store() -> Iterator[Valkey]:
    with valkey(persistent=True) as running:
        yield running


class Gateway(grpc.GenericRpcHandler):
    """Ends streams and begins others, to the pod of the header or to the next one; tells which it was where it was not
    asked for that one, as Envoy does.
    """

    def __init__(self, pods: Sequence[LocalPod]) -> None:
        self._pods = pods
        self._next = itertools.cycle(range(len(pods)))

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        async def passed(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            given = dict(context.invocation_metadata())
            chosen = int(given[HEADER]) if HEADER in given else next(self._next)
            await context.send_initial_metadata(() if HEADER in given else ((HEADER, str(chosen)),))
            async with grpc.aio.insecure_channel(self._pods[chosen].address) as channel:
                stream = channel.stream_stream(details.method)(requests)
                try:
                    async for response in stream:
                        yield response
                except grpc.aio.AioRpcError as error:
                    await context.abort(error.code(), error.details(), tuple(error.trailing_metadata()))

        return grpc.stream_stream_rpc_method_handler(passed)


@asynccontextmanager
async def gateway(pods: Sequence[LocalPod]) -> AsyncIterator[Lines]:
    """The lines to one."""
    server, lines = grpc.aio.server(), Lines()
    server.add_generic_rpc_handlers((Gateway(pods),))
    lines.lead_to(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    listening = await lines.listen()
    try:
        yield lines
    finally:
        listening.close()
        await server.stop(0)


async def cut_in_the_middle(client: Client, lines: Sequence[Lines], cuts: int = 1) -> tuple[str, int]:
    """(the text of a turn in which the lines were cut so often, the generation that ended it)"""
    async with client.call(**LONG) as call, asyncio.timeout(IN_TIME_S):
        turn, deltas, done = await call.final(LINES[0]), 0, 0
        async for event in turn:
            deltas += isinstance(event, TextDelta)
            if deltas > 1 and done < cuts and call.resumes == done:  # what was there already may come before a resume
                done += 1
                for one in lines:
                    one.cut_all()
        await until(lambda: call.resumes >= cuts)
        return turn.text, call._stream.books.generation


@pytest.mark.parametrize(("header", "generation"), [(HEADER, 1), ("x-other", 3)])
async def test_a_call_comes_back_through_a_gateway(store: Valkey, header: str, generation: int) -> None:
    """To the warm server where the header is sent back; else another one takes it over. No word differs."""
    async with (
        local_pods(2, store.url, advertise="") as pods,
        gateway(pods) as lines,
        Client(lines.address, affinity_header=header) as client,
    ):
        async with client.call(**LONG) as call:
            wanted = (await call.ask(LINES[0])).text
        assert await cut_in_the_middle(client, [lines], cuts=2) == (wanted, generation)


async def test_a_quiet_call_outlives_any_number_of_lines_that_were_good(
    store: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxies end connections at some age: that is no sign that no server survives the call."""
    monkeypatch.setattr("firstword.stream.GOOD_S", 0.2)
    async with (
        local_pods(1, store.url) as (pod,),
        Client(pod.address) as client,
        client.call(**LONG) as call,
        asyncio.timeout(IN_TIME_S),
    ):
        for times in range(1, MOST_IN_VAIN + 3):
            await asyncio.sleep(0.3)
            pod.lines.cut_all()
            await until(lambda wanted=times: call.resumes >= wanted)
        assert call.failure is None
        assert (await call.ask(LINES[0])).text


async def test_an_address_that_does_not_answer_is_not_waited_for(
    store: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server that is warm is named by an address that swallows everything: the one that was asked takes over."""
    monkeypatch.setattr("firstword.stream.OPENED_TIMEOUT_S", 2 * IN_TIME_S)
    patient = (("grpc.min_reconnect_backoff_ms", 120_000), ("grpc.use_local_subchannel_pool", 1))  # in connecting
    async with AsyncExitStack() as stack:
        pods = []
        for _ in range(2):
            hole = Lines()
            hole.silence_all()
            listening = await hole.listen()
            stack.callback(listening.close)
            stack.callback(hole.cut_all)
            pods.append(LocalPod(store.url, advertise=hole.address))
            await pods[-1].start()
            stack.push_async_callback(pods[-1].end)
            assert pods[-1].server is not None
            hole.lead_to(pods[-1].server.port)
        target = "ipv4:" + ",".join(pod.address for pod in pods)
        client = await stack.enter_async_context(Client(target, options=patient))
        async with client.call(**LONG) as call:
            wanted = (await call.ask(LINES[0])).text
        found = [await cut_in_the_middle(client, [pod.lines for pod in pods]) for _ in range(6)]
        assert {text for text, _ in found} == {wanted}
        assert max(generation for _, generation in found) > 1, "no try reached the server that was not warm"
