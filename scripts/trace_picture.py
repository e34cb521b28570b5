"""Draws a turn's trace as it was received from a running server: ``python -m scripts.trace_picture docs/trace.svg``.

The turn is one that was heard while it was said, called a tool and was spoken over. Nothing in the picture is made up.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

from firstword import Call, Client, TextDelta, ToolCall
from firstword.serve import local_server
from firstword.talk.front_desk import FrontDesk
from firstword.talk.script import Script, embedded_calls, read_call
from scripts.otlp import Received, Receiver

WORD_S, TOOL_S = 0.05, 0.12
"""From one word of the caller to the next; how long a tool takes."""

DRAFTING = {"FIRSTWORD_ENGINE__DRAFT_NODES": "8"}
"""Else what is drafted depends on how busy the machine was when the server started."""

WIDTH, LEFT, ROW, TOP = 1000, 250, 26, 46
FONT = 'font-family="Helvetica, Arial, sans-serif" font-size="13"'
COLOURS = {
    "chat": "#4c566a",
    "prefill ahead": "#5e81ac",
    "hand over": "#88909f",
    "queue": "#d08770",
    "prefill": "#81a1c1",
    "decode": "#7fa650",
    "execute_tool": "#b48ead",
    "first token": "#c9a227",
    "first clause": "#c9a227",
    "interruption": "#bf616a",
}


async def hold(address: str, script: Script) -> None:
    """Say the lines of a recorded caller until a reply that has called a tool was spoken over."""
    desk = FrontDesk(script.results)
    async with Client(address) as client, client.call(system=script.system, tools=script.tools, seed=1) as call:
        for line in script.lines:
            if await _turn(call, line, desk):
                return


async def _turn(call: Call, line: str, desk: FrontDesk) -> bool:
    words = line.split()
    for count in range(1, len(words) + 1):
        await call.partial(" ".join(words[:count]))
        await asyncio.sleep(WORD_S)
    turn, called, spoken_over = await call.final(line), False, False
    async for event in turn:
        if isinstance(event, ToolCall):
            await asyncio.sleep(TOOL_S)
            await call.tool_result(event, desk.answer(event.name) or '{"ok": true}')
            called = True
        elif isinstance(event, TextDelta) and called and not spoken_over:
            spoken_over = True
            await call.interrupt()
    return spoken_over


def interrupted(receiver: Receiver) -> Received | None:
    """The turn that is wanted, once it has arrived."""
    return next(
        (
            span
            for span in receiver.spans
            if span.name.startswith("chat ")
            and span.attributes["gen_ai.agent.invocation.end_reason"] == "interrupted"
            and span.attributes["firstword.turn.tool_calls"]
        ),
        None,
    )


def drawn(turn: Received, parts: Sequence[Received]) -> str:
    """The waterfall as SVG, a row for each span, with the figures that go with it."""
    rows = [turn, *sorted(parts, key=lambda span: (span.start, -span.end))]
    first, last = min(span.start for span in rows), max(span.end for span in rows)
    scale = (WIDTH - LEFT - 20) / (last - first)
    height = TOP + ROW * len(rows) + 30
    committed = LEFT + (turn.start - first) * scale
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {FONT}>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<path d="M{committed:.1f} 30V{height - 24}" stroke="#bbb" stroke-dasharray="4 3"/>',
        f'<text x="{committed + 4:.1f}" y="24" fill="#555">committed</text>',
    ]
    for number, span in enumerate(rows):
        out += _row(
            span, TOP + ROW * number, LEFT + (span.start - first) * scale, (span.end - span.start) * scale, number
        )
    total = f"{turn.attributes['firstword.steps']} steps, {(turn.end - turn.start) / 1e6:.1f} ms from commit to end"
    out += [f'<text x="{LEFT}" y="{height - 8}" fill="#555">trace {turn.trace}: {total}</text>', "</svg>"]
    return "\n".join(out) + "\n"


def _row(span: Received, y: float, x: float, width: float, number: int) -> list[str]:
    kind = next(name for name in COLOURS if span.name == name or span.name.startswith(f"{name} "))
    told = f"{(span.end - span.start) / 1e6:.1f} ms{_told(span)}"
    length, right = 6.8 * len(told), x + max(width, 2)
    if length + 12 < width:
        at = f'x="{x + 6:.1f}" fill="#fff"'
    elif right + length + 6 < WIDTH:
        at = f'x="{right + 6:.1f}" fill="#555"'
    else:  # no room behind the bar
        at = f'x="{x - 6:.1f}" fill="#555" text-anchor="end"'
    return [
        f'<text x="{10 if number == 0 else 26}" y="{y + 15}" fill="#222">{escape(span.name)}</text>',
        f'<rect x="{x:.1f}" y="{y + 3}" width="{max(width, 2):.1f}" height="{ROW - 9}" rx="2" fill="{COLOURS[kind]}"/>',
        f'<text {at} y="{y + 15}">{escape(told)}</text>',
    ]


def _told(span: Received) -> str:
    """What of its attributes is worth a few words."""
    known = span.attributes
    match span.name:
        case "prefill ahead":
            rewound, heard = known["firstword.prefill.rewound"], known["firstword.hypotheses"]
            return f", {known['firstword.prefill.tokens']} tokens of {heard} hypotheses, {rewound} rewound"
        case "prefill":
            return f", {known['firstword.prefill.tokens']} of {known['gen_ai.usage.input_tokens']} tokens"
        case "decode":
            kept = f"{known['firstword.draft.accepted']}/{known['firstword.draft.drafted']} drafts kept"
            return f", {known['firstword.steps']} steps, {kept}"
        case _:
            return ""


async def picture() -> str:
    """Start a server, hold the call and draw what comes of it."""
    recorded = embedded_calls()
    assert recorded is not None, "make model"
    with Receiver() as receiver:
        async with local_server(print, receiver.environment | DRAFTING) as server:
            await hold(server.address, read_call(recorded))
        turn = await asyncio.to_thread(receiver.wait, interrupted)
        parts = [span for span in receiver.spans if span.parent == turn.span]
    return drawn(turn, parts)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(asyncio.run(picture()), encoding="utf-8")
