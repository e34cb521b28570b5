"""The live conversation in the terminal: what is typed is what the recogniser hears, Enter is the end of a turn."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.timer import Timer
from textual.widgets import Footer, Input, Static

from firstword import Call, CallError, CallFailed, Client
from firstword.access import PLAIN, Access
from firstword.talk.exchange import Exchange, ToolUse
from firstword.talk.front_desk import FrontDesk
from firstword.talk.hearing import Hearing
from firstword.talk.playback import SPEAKING_RATE
from firstword.talk.script import Script
from firstword.talk.view import LEGEND, QUIET, TurnRow

PARTIAL_EVERY_S = 0.08
EAGER_AFTER_S = 0.5
"""Silence of the keyboard after which the caller has probably finished."""
FRAMES_A_SECOND = 15
RESUME_TIMEOUT_S = 5.0
"""Whoever sits in front of it would rather know that the server is gone."""


class TalkApp(App[None], inherit_bindings=False):
    """A conversation on an open call. rate: characters a second at which replies are spoken. hearing: what takes the
    call's notices, to be shown.
    """

    TITLE = "Firstword"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { background: #16191f; color: #d8dee9; }
    #title { height: 1; padding: 0 1; background: #232831; }
    #log { padding: 1; scrollbar-size-vertical: 1; }
    #legend { height: 1; padding: 0 1; }
    #hearing { height: 1; padding: 0 1; color: #77808f; }
    Input { border: round #4c566a; background: #16191f; }
    Input:focus { border: round #7fd1ae; }
    Footer { background: #232831; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "interrupt", "Interrupt", priority=True),
        Binding("f1", "instructions", "Instructions"),
        Binding("f2", "picture", "Save picture", priority=True),
        Binding("ctrl+s", "picture", show=False, priority=True),
        Binding("ctrl+c", "quit", "Leave", priority=True),
        Binding("ctrl+q", "quit", show=False, priority=True),
    ]

    def __init__(self, call: Call, script: Script, rate: float = SPEAKING_RATE, hearing: Hearing | None = None) -> None:
        super().__init__()
        self._hearing = hearing or Hearing()
        self._heard = Static("", id="hearing")
        self._eager_due: Timer | None = None
        self._eager = ""
        self._call = call
        self._script = script
        self._rate = rate
        self._desk = FrontDesk(script.results)
        self._lines = list(script.lines)
        self._partial_due: Timer | None = None
        self._partial = ""
        self._asking = asyncio.Lock()
        self._wanted: asyncio.Future[str] | None = None
        self._over = False
        self.row: TurnRow | None = None

    # What there is to see

    def compose(self) -> ComposeResult:
        opened = self._call.opened
        yield Static(
            Text.assemble(("Firstword ", "bold"), (f"· {opened.model} · {opened.session_id}", QUIET)), id="title"
        )
        with VerticalScroll(id="log", can_focus=False):
            if self._script.system:
                yield Static(Text(self._script.system.splitlines()[0] + "\n", QUIET))
        yield Static(LEGEND, id="legend")
        yield self._heard
        yield Input(placeholder=self._suggestion())
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#log", VerticalScroll).anchor()
        self.query_one(Input).focus()
        self.set_interval(1 / FRAMES_A_SECOND, self._frame)

    def _suggestion(self) -> str:
        return f"type what the caller says, such as: {self._lines[0]}" if self._lines else "type what the caller says"

    def _frame(self) -> None:
        """Playback goes on, and a call that broke is noticed while nothing is asked of it."""
        if self.row is not None:
            self.row.frame()
        self._heard.update(Text(str(self._hearing)))
        if self._call.failure is not None and not self._over:
            self._over = True
            field = self.query_one(Input)
            field.disabled, field.placeholder = True, f"the call is over: {self._call.failure}"
            field.value = ""

    # What the caller does

    def on_input_changed(self, event: Input.Changed) -> None:
        """What is typed is a hypothesis; it is sent once a while, not with every key. A pause may be the end of it."""
        if self._wanted is not None or not event.value.strip():
            return
        if self._partial_due is None:
            self._partial_due = self.set_timer(PARTIAL_EVERY_S, self._send_partial)
        if self._eager_due is not None:
            self._eager_due.stop()
        self._eager_due = self.set_timer(EAGER_AFTER_S, self._send_eager)

    async def _send_partial(self) -> None:
        self._partial_due = None
        text = self.query_one(Input).value.strip()
        if text and text != self._partial and self._wanted is None and not self._over:
            self._partial = text
            try:
                if self._eager and text != self._eager:
                    self._eager = ""
                    await self._call.turn_resumed()
                await self._call.partial(text)
            except CallFailed:
                self._frame()

    async def _send_eager(self) -> None:
        """Nothing was typed for a while: the reply is made ahead, and Enter releases it."""
        self._eager_due = None
        text = self.query_one(Input).value.strip()
        if text and text != self._eager and self._wanted is None and not self._over:
            self._eager = text
            try:
                await self._call.eager_end_of_turn(text)
            except CallFailed:
                self._frame()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        text = event.value.strip()
        if not text:
            return
        event.input.clear()
        if self._wanted is not None:
            if not self._wanted.done():
                self._wanted.set_result(text)
            return
        for due in (self._partial_due, self._eager_due):
            if due is not None:
                due.stop()
        self._partial_due = self._eager_due = None
        self._partial = self._eager = ""
        if text in self._lines:
            del self._lines[: self._lines.index(text) + 1]
        event.input.placeholder = self._suggestion()
        self.run_worker(self._hold_turn(text))

    async def _hold_turn(self, text: str) -> None:
        """The caller's turn is complete. Whatever is still being said is cut to what was heard of it."""
        await self._interrupt()
        exchange = Exchange(text)
        self.row = row = TurnRow(exchange, self._rate)
        try:
            turn = await self._call.final(text)
            await self.query_one("#log").mount(row)
            await exchange.follow(turn, self._answer)
        except (CallError, CallFailed) as error:
            exchange.problem = str(error)
            row.show()

    async def _interrupt(self) -> None:
        row = self.row
        if row is None or not row.live:
            return
        try:
            row.exchange.held = (await self._call.interrupt(heard_code_points=row.heard)).text
        except (CallError, CallFailed) as error:
            row.exchange.problem = str(error)
        row.show()

    async def _answer(self, use: ToolUse) -> None:
        """Send a tool's output: the front desk's, or for a tool that it does not know, what is typed."""
        output = self._desk.answer(use.call.name)
        if output is None:
            output = await self._typed(use)
        use.output = output
        await self._call.tool_result(use.call, output)

    async def _typed(self, use: ToolUse) -> str:
        async with self._asking:  # one question at a time
            field = self.query_one(Input)
            self._wanted = asyncio.get_running_loop().create_future()
            field.placeholder = f"type what {use} gives"
            try:
                return await self._wanted
            finally:
                self._wanted = None
                field.placeholder = self._suggestion()

    # Keys

    def action_interrupt(self) -> None:
        self.run_worker(self._interrupt())

    def action_instructions(self) -> None:
        self.notify(self._script.system or "none", title="The agent's instructions", timeout=20, markup=False)

    def action_picture(self) -> None:
        path = Path(time.strftime("firstword-%Y%m%d-%H%M%S.svg"))
        path.write_text(self.svg(), encoding="utf-8")
        self.notify(f"saved {path}", markup=False)

    def svg(self) -> str:
        """The screen as it stands. Spaces at the edge of a run of text count, also for renderers that drop them."""
        return self.export_screenshot(title="firstword").replace("<svg ", '<svg xml:space="preserve" ', 1)


def call_of(client: Client, script: Script, hearing: Hearing, *, temperature: float, seed: int | None) -> Call:
    """The call of a conversation that is watched, to be entered."""
    return client.call(
        system=script.system,
        tools=script.tools,
        temperature=temperature,
        seed=seed,
        progress_notices=True,
        on_notice=hearing.take,
    )


async def talk(address: str, script: Script, access: Access = PLAIN, *, temperature: float, seed: int | None) -> None:
    """Hold a conversation with the server at ``address`` until the user leaves.

    Raises CallFailed when the call cannot be opened, or broke.
    """
    hearing = Hearing()
    async with (
        Client(address, tls=access.tls or False, token=access.token, resume_timeout_s=RESUME_TIMEOUT_S) as client,
        call_of(client, script, hearing, temperature=temperature, seed=seed) as call,
    ):
        await TalkApp(call, script, hearing=hearing).run_async()
        if call.failure is not None:
            raise call.failure
