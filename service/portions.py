"""Long work in small portions, between which whatever else waits for the event loop has its turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

PORTION = 16

T = TypeVar("T")


async def in_portions(things: Iterable[T]) -> AsyncIterator[T]:
    """Each of them; others have their turn after every few."""
    for at, thing in enumerate(things, 1):
        yield thing
        if at % PORTION == 0:
            await asyncio.sleep(0)
