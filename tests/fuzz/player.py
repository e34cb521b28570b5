"""Plays a script against real servers, and checks every answer."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from firstword.line import at_once
from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import conversation_pb2 as conversation_pb
from firstword.v1 import options_pb2 as options_pb
from tests.fuzz.answers import Tally
from tests.fuzz.damage import damaged
from tests.fuzz.heard import Heard
from tests.fuzz.script import Resume, Script, Send, Wait

METHOD = "/firstword.v1.CallService/Call"
WATCHDOG_S, WORKED_S, MOST_S = 60.0, 20.0, 240.0
"""What must be answered and is not after so long hangs, if the process has worked so long meanwhile, or after the last
in any case: a machine with too much to do hangs nothing.
"""
_COMMITS = ("final", "respond", "say")


class Hang(Exception):
    """Something that must come did not."""


class _Watchdog:
    """Looks from now on."""

    def __init__(self) -> None:
        self._wall, self._worked = time.monotonic(), time.process_time()

    @property
    def barks(self) -> bool:
        wall, worked = time.monotonic() - self._wall, time.process_time() - self._worked
        return wall > MOST_S or (wall > WATCHDOG_S and worked > WORKED_S)


class _Stream:
    """One stream of the call. ``silent``: what comes on it counts no more, for the call has gone on elsewhere."""

    def __init__(self, channel: grpc.aio.Channel, tally: Tally, heard: Heard, news: asyncio.Event) -> None:
        # Without a serialiser: what is sent need not be a message.
        self._stream: Any = channel.stream_stream(METHOD, response_deserializer=call_pb.CallResponse.FromString)()
        self._tally, self._heard, self._news = tally, heard, news
        self._status: tuple[grpc.StatusCode, str, Any] | None = None
        self._stream.add_done_callback(self._note_status)
        self._own_end = False
        self.silent = False
        self.reading = asyncio.create_task(self._read())

    @property
    def over(self) -> bool:
        return self.reading.done()

    async def send(self, data: bytes) -> None:
        """Nothing, where the stream is over."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            await self._stream.write(data)
            self._tally.requests += 1

    async def half_close(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._stream.done_writing()

    def cancel(self) -> None:
        self._own_end = True
        self._stream.cancel()

    async def ended(self) -> None:
        """Raises Hang where it does not end."""
        watchdog = _Watchdog()
        while not (await asyncio.wait({self.reading}, timeout=5.0))[0]:
            if watchdog.barks:
                self.cancel()
                raise Hang("the stream does not end")

    async def _read(self) -> None:
        try:
            with contextlib.suppress(grpc.aio.AioRpcError):
                while (response := await self._stream.read()) is not grpc.aio.EOF:
                    self._tally.events += 1
                    if not self.silent:
                        self._take(response)
        except asyncio.CancelledError:
            if not self._own_end:
                raise
        finally:
            self._news.set()
        await self._stream.code()
        assert self._status is not None
        if wrong := self._tally.stream_ended(*self._status, own=self._own_end):
            self._heard.wrong.append(wrong)

    def _note_status(self, rpc: Any) -> None:
        """Keep the first status: a write under way when it arrives makes grpc.aio put another in its place."""
        if self._status is None:
            code, message, trailers = (at_once(about()) for about in (rpc.code, rpc.details, rpc.trailing_metadata))
            self._status = code, message or "", trailers or ()

    def _take(self, response: call_pb.CallResponse) -> None:
        self._heard.take(response)
        if response.WhichOneof("event") == "error" and (wrong := self._tally.refused(response.error)):
            self._heard.wrong.append(wrong)
        self._news.set()


class Player:
    """Of one script. channels: to each of the servers."""

    def __init__(self, channels: Sequence[grpc.aio.Channel], script: Script, tally: Tally) -> None:
        self._channels = channels
        self._script = script
        self._tally = tally
        self._heard = Heard()
        self._news = asyncio.Event()
        self._newest = 0
        self._streams: list[_Stream] = []

    async def play(self) -> list[str]:
        """What was wrong; empty where all was as it should be."""
        at = "opening the stream"
        try:
            stream = self._new_stream(self._script.pod)
            for number, step in enumerate(self._script.steps):
                at = f"step {number}, {step.kind}"
                stream = await self._do(stream, step)
            at = "the end"
            await self._end(stream)
        except Hang as hang:
            self._heard.wrong.append(f"hang at {at}: {hang}")
        finally:
            for each in self._streams:
                if not each.over:
                    each.cancel()
            await asyncio.gather(*(each.reading for each in self._streams), return_exceptions=True)
        return self._heard.wrong

    async def _do(self, stream: _Stream, step: Send | Wait | Resume) -> _Stream:
        match step:
            case Send():
                data = self._data(step)
                for _ in range(step.times):
                    if stream.over:
                        break
                    await stream.send(data)
            case Wait("turn"):
                await self._until(lambda: self._newest in self._heard.answered, stream, step.seconds)
            case Wait("event"):
                seq = self._heard.books.seq
                await self._until(lambda: self._heard.books.seq > seq, stream, step.seconds)
            case Wait():
                await asyncio.sleep(step.seconds)
            case Resume():
                return await self._resume(stream, step)
        return stream

    def _data(self, step: Send) -> bytes:
        """The bytes, with a tool call in them that was heard where they are to have one."""
        try:
            request = call_pb.CallRequest.FromString(step.data)
        except DecodeError:
            return step.data
        name = request.WhichOneof("event")
        if name in _COMMITS:
            self._newest = max(self._newest, getattr(request, name).turn_id)
        if step.call and len(self._heard.calls) >= step.call:
            request.tool_result.turn_id, request.tool_result.call_id = self._heard.calls[-step.call]
            return request.SerializeToString()
        return step.data

    async def _resume(self, stream: _Stream, step: Resume) -> _Stream:
        """Come back as a client would, or nearly. Nothing to come back to: the stream goes on."""
        if not self._heard.books.token:
            return stream
        match step.before:
            case "cancel":
                stream.cancel()
                await stream.ended()
            case "half_close":
                await stream.half_close()
        stream.silent = True
        self._heard.forget(step.forget)
        request = self._heard.books.resume(take_over=step.take_over)
        data = request.SerializeToString()
        if step.damage:
            data = damaged(random.Random(step.damage), request)
            self._heard.lie()
        found = self._new_stream(step.pod)
        await found.send(data)
        seq = self._heard.books.seq
        await self._until(lambda: self._heard.books.seq > seq, found, 0.05)
        self._tally.resumed += not found.over
        return found

    async def _end(self, stream: _Stream) -> None:
        """Leave, and see that the servers know. Raises Hang where they do not."""
        if self._script.probe and not stream.over:
            await self._probe(stream)
        match self._script.end:
            case "close" | "forget" as how:
                close = client_pb.Close(forget=how == "forget")
                await stream.send(call_pb.CallRequest(close=close).SerializeToString())
            case "half_close":
                await stream.half_close()
            case "cancel":
                stream.cancel()
        await stream.ended()

    async def _probe(self, stream: _Stream) -> None:
        """Whatever came before, a turn in order is answered, or refused. Raises Hang where it is neither."""
        turn_id = self._newest + 1
        if turn_id >= 2**64:
            return
        none = conversation_pb.ToolChoice(mode=conversation_pb.TOOL_CHOICE_MODE_NONE)
        options = options_pb.TurnOptions(sampling=options_pb.Sampling(max_output_tokens=3), tool_choice=none)
        final = client_pb.Final(turn_id=turn_id, text="Hello?", options=options)
        await stream.send(call_pb.CallRequest(final=final).SerializeToString())
        watchdog = _Watchdog()
        while not await self._until(lambda: turn_id in self._heard.answered, stream, 5.0):
            if watchdog.barks:
                raise Hang(f"turn {turn_id} is not answered")

    async def _until(self, condition: Callable[[], bool], stream: _Stream, seconds: float) -> bool:
        """Whether it comes to that before the stream is over, which is as good, or the time is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition() and not stream.over:
                    self._news.clear()
                    await self._news.wait()
        return condition() or stream.over

    def _new_stream(self, pod: int) -> _Stream:
        self._streams.append(_Stream(self._channels[pod], self._tally, self._heard, self._news))
        return self._streams[-1]
