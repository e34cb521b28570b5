"""A line on which nothing passes any more, and nobody is told: it is found out with the options that clients have."""

from __future__ import annotations

import asyncio

from firstword import Client, TextDelta
from tests.firstword.receptionist import LINES, SYSTEM
from tests.service.pods import local_pods

LEFT_WITHIN_S = 30.0
"""By default it takes eight seconds, or gRPC's own sixty where keepalive does not work."""


async def test_a_silent_line_is_left_for_another() -> None:
    opening = {"system": SYSTEM, "seed": 11, "temperature": 0.9, "max_tokens": 40}
    async with local_pods(1) as (pod,), Client(pod.address) as client:
        async with client.call(**opening) as call:
            wanted = await (await call.final(LINES[0])).run()
        async with client.call(**opening) as call:
            turn, deltas = await call.final(LINES[0]), 0
            async with asyncio.timeout(LEFT_WITHIN_S):
                async for event in turn:
                    deltas += isinstance(event, TextDelta)
                    if deltas == 2:
                        pod.lines.silence_those_there_are()
            assert turn.text == wanted.text
            assert call.resumes == 1
