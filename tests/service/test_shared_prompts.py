"""What the engine is told of a call's beginning: how much others share, whose it is, and that it is wanted soon."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import time
import urllib.request
from pathlib import Path

import pytest

from engine import records
from firstword.v1 import options_pb2 as options_pb
from service import client_events as client
from service.config import ConfigError, load_config
from service.conversation import Conversation
from service.history import History
from service.items import MessageItem
from service.options import Generation
from tests.e2e.server import CallStream, ServiceProcess, connected, example_calls
from tests.service.calls import LINES, SYSTEM, TOOLS, CallUnderTest, LocalEngine, chat

ITEMS = (MessageItem("1", "user", LINES[0]), MessageItem("2", "assistant", "Certainly."))


def conversation(*items: MessageItem, system: str = SYSTEM) -> Conversation:
    return Conversation.opened(chat(), client.Open(system=system, tools=TOOLS, items=items))


def test_the_preamble_is_what_instructions_and_tools_alone_decide() -> None:
    bare, begun = conversation(), conversation(*ITEMS)
    assert bare.preamble == bare.length > 100
    assert bare.preamble <= begun.preamble < begun.length
    assert begun.tokens[: bare.preamble] == bare.tokens
    other = conversation(MessageItem("1", "user", "Something else."))
    assert other.tokens[: bare.preamble] == bare.tokens


def sent(engine: LocalEngine) -> list[records.Command]:
    return list(engine._commands)


def test_a_call_shares_its_preamble_with_its_tenants_calls_alone() -> None:
    call = CallUnderTest(client.Open(system=SYSTEM, tools=TOOLS, items=ITEMS))
    (opened,) = sent(call.engine)
    assert isinstance(opened, records.Open)
    assert opened.preamble == records.Preamble("", conversation(*ITEMS).preamble)
    engine = LocalEngine()
    services = CallUnderTest(engine=engine).call.services
    History(services, "other", conversation(), tenant="acme").open(1, Generation(), print)
    last = sent(engine)[-1]
    assert isinstance(last, records.Open) and last.preamble == records.Preamble("acme", conversation().preamble)
    engine.close("other")


def reopened(call: CallUnderTest) -> records.Open:
    call.engine.die()
    (opened,) = (command for command in sent(call.engine) if isinstance(command, records.Open))
    return opened


def test_a_fresh_engine_is_told_of_the_preamble_until_other_instructions_stand_there() -> None:
    call = CallUnderTest(client.Open(system=SYSTEM, tools=TOOLS))
    call.send(client.Final(1, LINES[0]))
    call.run()
    assert reopened(call).preamble == records.Preamble("", conversation().preamble)
    call.run()
    call.send(client.Update(system="You answer for somebody else now."))
    assert reopened(call).preamble is None


def test_a_caller_who_makes_a_sound_is_announced_to_the_engine() -> None:
    call = CallUnderTest()
    call.run()
    call.send(client.SpeechStarted())
    assert sent(call.engine) == [records.Wake(call.call.session)]
    call.run()


@pytest.mark.parametrize(
    ("toml", "complaint"),
    [
        ("[[prompt]]\ntenant = 'a'", "neither system nor tools_file"),
        ("[[prompt]]\nsystem = 'x'\ntenant = 'a'\npublic = true", "either public or a tenant's"),
        ("[[prompt]]\nsystem = 'x'\ntools = []", "unknown key"),
    ],
)
def test_a_prompt_that_says_nothing_or_two_things_is_refused(toml: str, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "firstword.toml"
    file.write_text(toml)
    with pytest.raises(ConfigError, match=complaint):
        load_config({}, file)


def shared_tokens(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        page = answer.read().decode()
    found = re.search(r"^firstword_engine_prompt_shared_total(?:\{.*\})? ([0-9.e+]+)$", page, re.MULTILINE)
    assert found, page
    return float(found[1])


def wait_until_shared(port: int, wanted: int) -> None:
    """Told by the engine's next sign of life."""
    until = time.monotonic() + 60
    while (found := shared_tokens(port)) != wanted:
        assert time.monotonic() < until, found
        time.sleep(0.1)


@pytest.mark.asyncio
async def test_the_first_call_finds_a_configured_prompt_computed_also_after_the_engine_died(tmp_path: Path) -> None:
    system, tools, _ = example_calls(1)[0]
    given = [
        {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters_json_schema)}
        for tool in tools
    ]
    config = tmp_path / "firstword.toml"
    tools_file = tmp_path / "tools.json"
    config.write_text(f"[[prompt]]\nsystem = {json.dumps(system)}\ntools_file = '{tools_file}'\npublic = true\n")
    tools_file.write_text(json.dumps(given))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "FIRSTWORD_CONFIG": str(config),
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
    }
    with ServiceProcess(settings) as service:
        async with connected(service.address) as stub:
            for life in range(2):
                call = CallStream(stub)
                opened = await call.open(
                    system_prompt=system, tools=tools, sampling=options_pb.Sampling(max_output_tokens=4)
                )
                turn = await call.say("Hello?")
                assert turn.ended is not None and turn.ended.usage.cached_tokens >= opened.used_tokens - 1
                await asyncio.to_thread(wait_until_shared, port, opened.used_tokens - 1)
                await call.close()
                if life == 0:
                    os.kill(service.engine_pid, signal.SIGKILL)
                    service.wait_for("engine lost, restarting")
                    service.wait_for("engine ready")
                    await asyncio.to_thread(wait_until_shared, port, 0)
