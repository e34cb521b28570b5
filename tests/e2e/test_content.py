"""No text of a call is in a log, a span, a metric or an error, over TLS, from the API key to the last word, unless that
is asked for; and then it is there. Each kind of text has a word of its own that is looked for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import call_service_pb2_grpc
from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import conversation_pb2 as conversation_pb
from firstword.v1 import options_pb2 as options_pb
from scripts.otlp import Receiver, attributes
from service.security.api_keys import new_key
from service.telemetry import names
from service.telemetry.access import MEANS, TURNED_AWAY
from tests.e2e.server import CallStream, ServiceProcess
from tests.service.security.authority import Authority
from tests.service.security.doors import Answer, answer, bearer, channel, ending
from tests.service.security.test_api_keys import write

WORDS = {
    kind: f"zq{kind}quux"
    for kind in (
        *("system", "item", "tool", "parameter", "partial", "eager", "final", "result", "say", "heard", "question"),
        *("phrase", "update", "schema", "pattern", "caller", "refused", "broken", "large"),
    )
}
KEY, ENTRY = new_key("acme")
SECRET = KEY.rpartition(f"{ENTRY.id}_")[2]
SCHEMA = {
    "type": "object",
    "description": WORDS["tool"],
    "properties": {"word": {"type": "string", "enum": [WORDS["parameter"]]}},
    "required": ["word"],
}
TOOL = conversation_pb.Tool(name="note", description=WORDS["tool"], parameters_json_schema=json.dumps(SCHEMA))
MUST_CALL = conversation_pb.ToolChoice(mode=conversation_pb.TOOL_CHOICE_MODE_REQUIRED)


@dataclass
class Watched:
    """A server, what it exports, and what it has said to its clients of errors."""

    process: ServiceProcess
    receiver: Receiver
    channel: grpc.ChannelCredentials
    errors: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ends: list[Answer] = field(default_factory=list)

    @property
    def exported(self) -> bytes:
        return self.receiver.raw

    @property
    def logged(self) -> str:
        return json.dumps(self.process.entries)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Watched]]:
    """One as it is by default, and one that was told to tell what is said; both have held the same calls."""
    directory = tmp_path_factory.mktemp("content")
    authority = Authority(directory)
    own = authority.pair()
    write(keys := directory / "keys.toml", ENTRY)
    secured = {
        "FIRSTWORD_TLS__CERTIFICATE": str(own.certificate),
        "FIRSTWORD_TLS__KEY": str(own.key),
        "FIRSTWORD_AUTH__API_KEYS_FILE": str(keys),
        "FIRSTWORD_LOG__LEVEL": "debug",
        "FIRSTWORD_SERVER__MAX_MESSAGE_BYTES": "100000",
        "OTEL_METRICS_EXPORTER": "otlp",
    }
    with ExitStack() as stack:
        started = {}
        for name, more in (("silent", {}), ("telling", {"FIRSTWORD_TELEMETRY__CONTENT": "true"})):
            receiver = stack.enter_context(Receiver())
            process = ServiceProcess({**secured, **more, **receiver.environment})
            stack.callback(process.stop)
            started[name] = Watched(process, receiver, authority.channel())
        for watched in started.values():
            with_port = watched.process.wait_for("serving")
            watched.process.port = int(with_port["port"])
            asyncio.run(hold_calls(watched))
            watched.receiver.wait(lambda seen: any(span.name == "call" for span in seen.spans))
            watched.receiver.wait(lambda seen: "firstword.calls" in seen.metrics)
        yield started


async def hold_calls(watched: Watched) -> None:
    """Everything that a client can say, what is refused of it, and what ends a stream."""
    address = watched.process.address
    async with channel(address, watched.channel) as up:
        stub = call_service_pb2_grpc.CallServiceStub(up)

        class Authorised:
            Call = staticmethod(lambda: stub.Call(metadata=bearer(KEY)))

        call = CallStream(Authorised)  # type: ignore[arg-type]
        await everything(call)
        watched.errors += [error.message for error in errors(call)]
        watched.texts += [m.text_delta.text for m in call.received if m.WhichOneof("event") == "text_delta"]
        watched.ends.append((await call.close(), ""))
        for request in broken_requests():
            stream: Any = up.stream_stream(
                "/firstword.v1.CallService/Call", lambda sent: sent, call_pb.CallResponse.FromString
            )(metadata=bearer(KEY))
            watched.ends.append(await ending(stream, request))
            watched.errors.append(str(await stream.details()))
    for credential in (None, KEY[:-1] + "!", SECRET):
        watched.ends.append(await answer(address, credential, watched.channel))


async def everything(call: CallStream) -> None:
    """One call with each kind of text in it."""
    message = conversation_pb.Message(role=conversation_pb.ROLE_USER, text=f"Hello, {WORDS['item']}.")
    fallback = options_pb.Fallback(phrase=f"One moment, {WORDS['phrase']}.")
    await call.open(
        system_prompt=f"You take notes. {WORDS['system']}",
        items=[conversation_pb.Item(message=message)],
        tools=[TOOL],
        seed=1,
        caller_key=WORDS["caller"],
        fallbacks=[fallback],
        sampling=options_pb.Sampling(max_output_tokens=60, temperature=0.0),
    )
    await call.send(partial=client_pb.Partial(turn_id=1, revision=1, text=f"note {WORDS['partial']}"))
    eager = client_pb.EagerEndOfTurn(turn_id=1, revision=2, text=f"note down {WORDS['eager']}")
    await call.send(eager_end_of_turn=eager)
    call.tool_output = json.dumps({"done": WORDS["result"]})
    turn = await call.say(f"note down {WORDS['final']}", tool_choice=MUST_CALL)
    assert turn.ended is not None and [made.name for made in turn.calls][:1] == ["note"]
    call.turn_id += 1
    await call.send(say=client_pb.Say(turn_id=call.turn_id, text=f"Noted. {WORDS['say']}"))
    await call.turn()
    await call.send(generate=client_pb.Generate(request_id=1, question=f"What is {WORDS['question']}?"))
    await call.send(update=client_pb.Update(system_prompt=f"You are kind. {WORDS['update']}"))
    await refused_events(call)


async def refused_events(call: CallStream) -> None:
    """Each is answered by an error."""
    word = WORDS["refused"]
    before = len(errors(call))
    await call.send(interrupt=client_pb.Interrupt(turn_id=call.turn_id, heard=client_pb.Heard(text=WORDS["heard"])))
    wrong = [
        {"tool_result": client_pb.ToolResult(turn_id=1, call_id="none", output=word)},
        {"final": client_pb.Final(turn_id=1, text=word)},
        {"final": client_pb.Final(turn_id=call.turn_id + 1, text=word * 5000)},
        {"update": client_pb.Update(tools=conversation_pb.ToolList(tools=[tool("{" + WORDS["broken"])]))},
        {
            "update": client_pb.Update(
                tools=conversation_pb.ToolList(tools=[tool(json.dumps({"type": WORDS["schema"]}))])
            )
        },
        {"say": client_pb.Say(turn_id=1, text=word)},
    ]
    for event in wrong:
        await call.send(**event)
    while len(errors(call)) < before + len(wrong):
        await call.next()


def tool(schema: str) -> conversation_pb.Tool:
    return conversation_pb.Tool(name="other", parameters_json_schema=schema)


def errors(call: CallStream) -> list[Any]:
    return [message.error for message in call.received if message.WhichOneof("event") == "error"]


def broken_requests() -> list[bytes]:
    """Each ends the stream that it opens."""
    large = client_pb.Open(system_prompt=WORDS["large"] * 10_000)
    pattern = json.dumps({"type": "object", "properties": {"a": {"type": "string", "pattern": f"({WORDS['pattern']}"}}})
    wrong = (
        client_pb.Open(tools=[tool(WORDS["broken"])]),
        client_pb.Open(tools=[tool(pattern)]),
        client_pb.Open(items=[conversation_pb.Item(tool_output=conversation_pb.ToolOutput(output=WORDS["refused"]))]),
    )
    none = b"\x12" + bytes([200]) + WORDS["broken"].encode()
    return [*(call_pb.CallRequest(open=opening).SerializeToString() for opening in (large, *wrong)), none]


def found(text: str | bytes) -> set[str]:
    """Kinds of text that are in it."""
    raw = text if isinstance(text, bytes) else text.encode()
    return {kind for kind, word in WORDS.items() if word.encode() in raw}


@pytest.mark.parametrize("name", ["silent", "telling"])
def test_all_of_it_was_said_and_refused(name: str, servers: dict[str, Watched]) -> None:
    """Else what follows would show nothing."""
    watched = servers[name]
    assert len(watched.errors) >= 6 + len(broken_requests())
    codes = [code for code, _ in watched.ends]
    assert codes[0] is grpc.StatusCode.OK
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes and grpc.StatusCode.INVALID_ARGUMENT in codes
    assert [reason for _, reason in watched.ends[-3:]] == ["NO_CREDENTIALS"] + ["INVALID_CREDENTIALS"] * 2
    events = {entry["event"] for entry in watched.process.entries}
    assert {"call opened", "call ended", "turned away"} <= events
    (opened,) = [entry for entry in watched.process.entries if entry["event"] == "call opened"]
    assert opened["tenant"] == "acme"


def test_none_of_it_is_told_to_whoever_watches(servers: dict[str, Watched]) -> None:
    watched = servers["silent"]
    assert found(watched.logged) == set()
    assert found(watched.exported) == set()


@pytest.mark.parametrize("name", ["silent", "telling"])
def test_no_error_repeats_what_was_said(name: str, servers: dict[str, Watched]) -> None:
    """Of a schema that cannot be used it may say which part of it."""
    assert found(json.dumps(servers[name].errors)) <= {"schema", "pattern"}


@pytest.mark.parametrize("name", ["silent", "telling"])
def test_no_secret_is_told_to_anybody(name: str, servers: dict[str, Watched]) -> None:
    watched = servers[name]
    for told in (watched.logged, repr(watched.exported), json.dumps(watched.errors)):
        assert SECRET not in told and ENTRY.sha256 not in told


def test_where_it_is_asked_for_spans_hold_what_was_said(servers: dict[str, Watched]) -> None:
    assert {"final", "parameter", "result"} <= found(servers["telling"].exported)


def test_who_came_in_and_who_did_not_is_counted(servers: dict[str, Watched]) -> None:
    receiver = servers["silent"].receiver

    def counted(seen: Receiver, name: str, label: str) -> dict[str, int]:
        points = seen.metrics[name].sum.data_points if name in seen.metrics else []
        return {attributes(point.attributes)[label]: point.as_int for point in points}

    streams = 1 + len(broken_requests())
    came = dict.fromkeys(MEANS, 0) | {"api_key": streams}
    receiver.wait(lambda seen: counted(seen, names.ENTERED, names.MEANS) == came)
    away = dict.fromkeys((reason.value for reason in TURNED_AWAY), 0) | {"NO_CREDENTIALS": 1, "INVALID_CREDENTIALS": 2}
    receiver.wait(lambda seen: counted(seen, names.TURNED_AWAY, names.ERROR) == away)
    for name in (names.RELOADS, names.RELOAD_FAILURES):  # none yet, which is known
        assert counted(receiver, name, names.RELOADED) == {"certificate": 0, "api_keys": 0}
    (left,) = receiver.metrics[names.CERTIFICATE_EXPIRES].gauge.data_points
    assert 0 < left.as_double <= 86_400
