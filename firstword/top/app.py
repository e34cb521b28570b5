"""The terminal application: the figures of the last minute, read again every few seconds."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import ClassVar

from rich.console import Console, RenderableType
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Footer, Static

from firstword.access import PLAIN, Access
from firstword.top.figures import figures
from firstword.top.scrape import ScrapeError, Snapshot, scrape
from firstword.top.view import BAD, render

WINDOW_S = 60.0


class Window:
    """The snapshots of the last minute; what has happened between the oldest and the newest is what is shown."""

    def __init__(self) -> None:
        self._snapshots: deque[Snapshot] = deque()

    def add(self, snapshot: Snapshot) -> tuple[Snapshot, str]:
        """(what happened in the window that ends with it, how long that is in words)"""
        self._snapshots.append(snapshot)
        while snapshot.at - self._snapshots[0].at > WINDOW_S:
            self._snapshots.popleft()
        oldest = self._snapshots[0]
        if oldest is snapshot:
            return snapshot, "since the instance started"
        grown = snapshot.since(oldest)
        if grown is snapshot:  # another process answers
            self._snapshots = deque([snapshot])
            return snapshot, "since the instance started"
        return grown, f"the last {snapshot.at - oldest.at:.0f} s"


class TopApp(App[None], inherit_bindings=False):
    """The figures of one instance. address: of its Prometheus endpoint. every_s: how often it is read. access: where a
    proxy before it asks for some.
    """

    TITLE = "firstword top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { background: #16191f; color: #d8dee9; }
    #figures { padding: 1 2; }
    Footer { background: #232831; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("w", "total", "Last minute / since the start"),
        Binding("q", "quit", "Leave"),
        Binding("ctrl+c", "quit", show=False, priority=True),
    ]

    def __init__(self, address: str, every_s: float, access: Access = PLAIN) -> None:
        super().__init__()
        self._address = address
        self._access = access
        self._every_s = every_s
        self._window = Window()
        self._total = False
        self.shown: RenderableType = ""

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(id="figures")
        yield Footer()

    async def on_mount(self) -> None:
        self.set_interval(self._every_s, self.read)
        await self.read()

    async def read(self) -> None:
        """Read the endpoint and show what it says, or why it cannot be read."""
        try:
            newest = await asyncio.to_thread(scrape, self._address, self._access)
        except ScrapeError as error:
            self.shown = f"[{BAD}]{error}[/]"
        else:
            recent, span = self._window.add(newest)
            chosen, span = (newest, "since the instance started") if self._total else (recent, span)
            self.shown = render(figures(chosen), f"{self._address}, {span}")
        self.query_one("#figures", Static).update(self.shown)

    async def action_total(self) -> None:
        self._total = not self._total
        await self.read()


def top(address: str, every_s: float, access: Access = PLAIN) -> None:
    """Show the figures until the user leaves."""
    TopApp(address, every_s, access).run()


def once(address: str, access: Access = PLAIN) -> None:
    """Print the figures since the instance started. Raises ScrapeError."""
    Console().print(render(figures(scrape(address, access)), f"{address}, since the instance started"))
