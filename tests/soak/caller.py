"""One caller: what they say is decided by a number, and all that they hear is written down."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc

from firstword import Call, CallFailed, Client, TextDelta, Tool
from firstword.v1 import call_service_pb2 as call_pb
from tests.firstword.receptionist import EXAMPLES

TURNS = 4
MAX_TOKENS = 48
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)


@dataclass
class Heard:
    """What came of one call. turns: of each (text, tool calls, what the history holds, tokens in use). wrong: whatever
    should not be. records: of the events received, by number. generations: of their servers, likewise.
    """

    script: int
    session: str = ""
    turns: list[tuple[str, tuple[str, ...], str, int]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    records: dict[int, bytes] = field(default_factory=dict)
    generations: dict[int, int] = field(default_factory=dict)
    events: int = 0
    resumes: int = 0
    last_seq: int = 0
    texts: dict[int, str] = field(default_factory=dict)

    def take(self, response: call_pb.CallResponse) -> None:
        """Check one event against those before it."""
        opened = response.WhichOneof("event") == "opened"
        if opened and response.opened.resumed:
            if response.seq != self.last_seq:
                self.wrong.append(f"resumed from {response.seq}, not {self.last_seq}")
            return
        self.events += 1
        if response.seq != self.last_seq + 1:
            self.wrong.append(f"event {response.seq} after {self.last_seq}")
        if response.generation < (newest := self.generations.get(self.last_seq, 0)):
            self.wrong.append(f"generation {response.generation} after {newest}")
        self.last_seq = response.seq
        self.generations[response.seq] = response.generation
        if response.record:
            self.records[response.seq] = response.record
        if response.WhichOneof("event") == "text_delta":
            delta = response.text_delta
            before = self.texts.get(delta.turn_id, "")
            if delta.offset_code_points != len(before):
                self.wrong.append(f"turn {delta.turn_id} goes on at {delta.offset_code_points}, not {len(before)}")
            self.texts[delta.turn_id] = before + delta.text


class Caller:
    """script: which call it is. speaking: whether a reply is coming in."""

    def __init__(self, client: Client, script: int) -> None:
        self._client = client
        self._rng = random.Random(script)
        self._example = EXAMPLES[script % len(EXAMPLES)]
        self.heard = Heard(script)
        self.speaking = False
        self.call: Call | None = None

    async def run(self) -> Heard:
        """Hold the call."""
        messages = self._example["messages"]
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        lines = [message["content"] for message in messages if message["role"] == "user"][:TURNS]
        lines += ["Yes, please.", "All right. And when do you open?", "Thank you."][: TURNS - len(lines)]
        settings: dict[str, Any] = {
            "system": system,
            "tools": [_tool(tool["function"]) for tool in self._example.get("tools") or []],
            "seed": self.heard.script,
            "temperature": 0.7,
            "max_tokens": MAX_TOKENS,
        }
        async with AsyncExitStack() as stack:
            self.call = call = await self._opened(stack, settings)
            self.heard.session = call.opened.session_id
            for line in lines:
                await self._turn(call, line)
            self.heard.resumes = call.resumes
        return self.heard

    async def _opened(self, stack: AsyncExitStack, settings: dict[str, Any]) -> Call:
        """A call that was not begun cannot be resumed: who is sent away, or hears nothing, asks again."""
        while True:
            call = self._client.call(**settings)
            self._record(call)
            try:
                return await stack.enter_async_context(call)
            except CallFailed as failed:
                if failed.code not in _AGAIN:
                    raise
                await asyncio.sleep(0.2)

    def _record(self, call: Call) -> None:
        """Have all that a call receives written down, from the first event on: also where a server that leaves has
        refused it, and the call has begun again by itself.
        """
        begin_again = call._begin_again

        def recorded() -> None:
            begin_again()
            self.heard = heard = Heard(self.heard.script)
            receive = call._stream._on_response

            def take(response: call_pb.CallResponse) -> None:
                heard.take(response)
                receive(response)

            call._stream._on_response = take

        call._begin_again = recorded  # type: ignore[method-assign]  # a client of another revision has it too
        recorded()

    async def _turn(self, call: Call, line: str) -> None:
        words = line.split()
        for count in (len(words) // 3, 2 * len(words) // 3):
            await call.partial(" ".join(words[:count]))
        if self._rng.random() < 0.5:
            await call.eager_end_of_turn(line)
        turn = await call.final(line)

        def hear(event: object) -> None:
            self.speaking = self.speaking or isinstance(event, TextDelta)

        try:
            await turn.run(hear)
        finally:
            self.speaking = False
        assert turn.report is not None
        if turn.report.text != turn.text:
            self.heard.wrong.append(f"turn {turn.id} reads {turn.report.text!r}, heard was {turn.text!r}")
        if self._rng.random() < 0.4:
            await call.interrupt(heard_code_points=len(turn.text) // 2)
        made = tuple(f"{made.name} {sorted(made.arguments.items())}" for made in turn.tool_calls)
        self.heard.turns.append((turn.text, made, turn.history_text or "", turn.report.used_tokens))


def _tool(made: Any) -> Tool:
    async def handler(**arguments: Any) -> Any:
        return {"ok": True}

    return Tool(made["name"], made.get("description", ""), made["parameters"], handler=handler)
