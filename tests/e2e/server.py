"""Starts the real service in a process of its own and speaks to it over a real socket."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc

from firstword.books import Books
from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import call_service_pb2_grpc
from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import conversation_pb2 as conversation_pb
from firstword.v1 import error_pb2 as error_pb
from firstword.v1 import notices_pb2 as notices_pb
from firstword.v1 import options_pb2 as options_pb
from firstword.v1 import server_events_pb2 as server_pb

if TYPE_CHECKING:
    from firstword.v1.call_service_pb2_grpc import CallServiceAsyncStub as Stub

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "receptionist"
EXAMPLES = Path(__file__).resolve().parents[1] / "calls.jsonl"
"""Calls in the form that the embedded model was trained on. The tests' own, so that what the first lines ask for is
answered in words whatever model is made next.
"""
START_TIMEOUT_S = 120


class ServiceProcess:
    """``python -m service`` on a free port. ``entries``: its log so far, one dict a line. root: of the tree whose
    service it is. python: that runs it.
    """

    def __init__(
        self, environment: Mapping[str, str] | None = None, root: Path = ROOT, python: str = sys.executable
    ) -> None:
        # Machines that run tests are slow at times, which is no reason to refuse a call there.
        patient = {"FIRSTWORD_ADMISSION__MAX_BACKLOG_MS": "60000"}
        if root == ROOT:  # earlier revisions refuse nobody for speech, and know no such key
            patient["FIRSTWORD_ADMISSION__MAX_SPEECH_LOAD"] = "60"
        settings = {"FIRSTWORD_SERVER__PORT": "0", "OMP_NUM_THREADS": "1", **patient, **(environment or {})}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FIRSTWORD_", "OTEL_"))}
        self.entries: list[dict[str, Any]] = []
        self._arrivals: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.process = subprocess.Popen(
            [python, "-m", "service"],
            cwd=root,
            env={**inherited, **settings},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read_log, daemon=True).start()

    def __enter__(self) -> Self:
        self.port = int(self.wait_for("serving")["port"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def engine_pid(self) -> int:
        """Of the calls' own model, the last that was started."""
        return self.engine_pid_of(MODEL.name)

    def engine_pid_of(self, model: str) -> int:
        """Of a model by the name of its directory, the last that was started."""
        ready = (entry for entry in self.entries if entry["event"] == "engine ready" and entry["model"] == model)
        return int([*ready][-1]["pid"])

    def wait_for(self, event: str, **fields: object) -> dict[str, Any]:
        """The next log entry of that name, among those not waited for yet."""
        while True:
            entry = self._arrivals.get(timeout=START_TIMEOUT_S)
            if entry is None:
                raise RuntimeError(f"the service ended before {event!r}: {self.entries[-5:]}")
            if entry["event"] == event and all(entry.get(name) == value for name, value in fields.items()):
                return entry

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"event": "unstructured", "line": line}
            self.entries.append(entry)
            self._arrivals.put(entry)
        self._arrivals.put(None)


@dataclass
class Turn:
    """What came of one turn."""

    text: str = ""
    deltas: list[server_pb.TextDelta] = field(default_factory=list)
    calls: list[conversation_pb.ToolCall] = field(default_factory=list)
    ended: server_pb.TurnEnded | None = None
    errors: list[error_pb.Error] = field(default_factory=list)
    notices: list[notices_pb.Notice] = field(default_factory=list)


class CallStream:
    """One call at the level of its messages: what a client library is made of."""

    def __init__(self, stub: Stub) -> None:
        self.stream = stub.Call()
        self.seq = 0
        self.turn_id = 0
        self.tool_output = '{"ok": true}'
        self.received: list[call_pb.CallResponse] = []

    async def send(self, **event: Any) -> None:
        self.seq += 1
        await self.stream.write(call_pb.CallRequest(client_seq=self.seq, **event))

    async def next(self) -> call_pb.CallResponse:
        message = await self.stream.read()
        assert isinstance(message, call_pb.CallResponse), f"the stream ended: {await self.stream.code()}"
        self.received.append(message)
        return message

    async def expect(self, kind: str) -> Any:
        message = await self.next()
        assert message.WhichOneof("event") == kind, message
        return getattr(message, kind)

    async def open(self, **fields: Any) -> server_pb.Opened:
        await self.send(open=client_pb.Open(**fields))
        opened = await self.expect("opened")
        assert isinstance(opened, server_pb.Opened)
        return opened

    async def say(self, text: str, **options: Any) -> Turn:
        """A whole turn of the caller, and what came of it."""
        self.turn_id += 1
        final = client_pb.Final(turn_id=self.turn_id, text=text, options=options_pb.TurnOptions(**options))
        await self.send(final=final)
        return await self.turn()

    async def turn(self) -> Turn:
        """Read until the current turn is over, answering its tool calls; or until its event was refused.

        What an older one still said before it was overtaken is passed over.
        """
        turn = Turn()
        while turn.ended is None:
            message = await self.next()
            match message.WhichOneof("event"):
                case "text_delta" if message.text_delta.turn_id == self.turn_id:
                    assert message.text_delta.offset_code_points == len(turn.text)
                    assert sum(span.code_points for span in message.text_delta.spans) == len(message.text_delta.text)
                    turn.text += message.text_delta.text
                    turn.deltas.append(message.text_delta)
                case "tool_called":
                    turn.calls.append(message.tool_called.call)
                case "turn_waiting":
                    for call_id in message.turn_waiting.call_ids:
                        result = client_pb.ToolResult(turn_id=self.turn_id, call_id=call_id, output=self.tool_output)
                        await self.send(tool_result=result)
                case "error":
                    turn.errors.append(message.error)
                    if message.error.HasField("client_seq"):
                        return turn
                case "notice":
                    turn.notices.append(message.notice)
                case "turn_ended":
                    if message.turn_ended.turn_id == self.turn_id:
                        turn.ended = message.turn_ended
        return turn

    async def close(self) -> grpc.StatusCode:
        """Close the call in order; its status."""
        await self.send(close=client_pb.Close())
        while await self.stream.read() is not grpc.aio.EOF:
            pass
        return await self.stream.code()


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Stub]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield call_service_pb2_grpc.CallServiceStub(channel)  # type: ignore[misc]


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are there."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = stat.read_text().rpartition(") ")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(stat.parent.name))
    return found


def example_calls(count: int) -> list[tuple[str, list[conversation_pb.Tool], list[str]]]:
    """(system prompt, tools, the caller's lines) of ``EXAMPLES``."""
    lines = EXAMPLES.read_text().splitlines()
    calls = []
    for line in lines[:count]:
        example = json.loads(line)
        tools = [
            conversation_pb.Tool(
                name=tool["function"]["name"],
                description=tool["function"].get("description", ""),
                parameters_json_schema=json.dumps(tool["function"]["parameters"]),
            )
            for tool in example.get("tools") or []
        ]
        messages = example["messages"]
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        calls.append((system, tools, [m["content"] for m in messages if m["role"] == "user"]))
    return calls


async def resume_with(address: str, books: Books) -> grpc.StatusCode:
    """The status with which a server answers whoever comes back with these books."""
    async with connected(address) as stub:
        stream = stub.Call()
        await stream.write(books.resume(take_over=True))
        with suppress(grpc.aio.AioRpcError):
            await stream.read()
        code = await stream.code()
        assert isinstance(code, grpc.StatusCode)
        return code
