"""A call whose server is killed: its trace at the next one leads to what the first had told, by a real receiver."""

from __future__ import annotations

from firstword import TextDelta
from scripts.otlp import Receiver
from tests.e2e.pods import client_of, pods
from tests.firstword.receptionist import LINES, SYSTEM
from tests.service.store.valkey import valkey


async def test_the_span_of_a_call_that_was_taken_over_links_the_earlier_servers() -> None:
    with valkey(persistent=True) as store, Receiver() as receiver:
        settings = receiver.environment | {
            "FIRSTWORD_STORE__URL": store.url,
            "FIRSTWORD_ENGINE__POOL_TOKENS": "4096",
            "FIRSTWORD_ENGINE__DRAFT_NODES": "1",
        }
        with pods(2, settings) as two:
            addresses = [pod.address for pod in two]
            async with (
                client_of(addresses, resume_timeout_s=200.0) as client,
                client.call(system=SYSTEM, seed=11, max_tokens=30) as call,
            ):
                session = call.opened.session_id
                await (await call.final(LINES[0])).run()
                told = receiver.wait(lambda seen: [span for span in seen.spans if span.name.startswith("chat ")])
                second, killed = await call.final(LINES[1]), False
                async for event in second:
                    if isinstance(event, TextDelta) and not killed:
                        killed = True
                        next(pod for pod in two if pod.events("call opened")).kill()
                assert killed and call.resumes == 1
            (span,) = receiver.wait(lambda seen: [span for span in seen.spans if span.name == "call"])
    assert span.attributes["gen_ai.conversation.id"] == session
    # The first server's own span of the call died with it; the turns that it had told are that span's children.
    assert span.links == (told[0].parent,)
    assert span.trace != told[0].trace
    turns = [turn for turn in receiver.spans if turn.name.startswith("chat ") and turn.parent == span.span]
    assert [turn.attributes["firstword.turn.id"] for turn in turns] == [2]
