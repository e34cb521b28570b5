"""How a conversation looks: a row for each turn, what was said on the left and its numbers on the right."""

from __future__ import annotations

import time

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Static

from firstword.talk.exchange import Exchange, Piece, facts
from firstword.talk.playback import Playback

LABEL_WIDTH = 7
DRAFTED, CHOSEN = "underline #7fd1ae", "bold #f2f2f2"
TO_COME, UNHEARD = "#77808f", "strike #b0616a"
CALLER, AGENT, TOOL, QUIET, BAD = "#e5b567", "#7fd1ae", "#8ab4f8", "#77808f", "#e06c75"

LEGEND = Text.assemble(
    ("drafted and confirmed", DRAFTED),
    ("   "),
    ("the model's own choice", CHOSEN),
    ("   "),
    ("not spoken yet", TO_COME),
    ("   "),
    ("never heard", UNHEARD),
)


def reply_text(pieces: list[Piece], offset: int, spoken: int, held: int | None) -> Text:
    """A stretch of a reply's text, which begins at ``offset`` in it.

    spoken: code points of the whole reply that have been played. held: those that the history holds after an
    interruption; None: it was not interrupted.
    """
    text = Text()
    for piece in pieces:
        text.append(piece.text, DRAFTED if piece.drafted else CHOSEN)
    if held is not None:
        text.stylize(UNHEARD, max(0, held - offset))
    else:
        text.stylize(TO_COME, max(0, spoken - offset))
    return text


def said(exchange: Exchange, spoken: int) -> Table:
    """The caller's line, the reply as far as it has come, and its tool calls, in order."""
    table = Table.grid(padding=(0, 1))
    table.add_column(width=LABEL_WIDTH)
    table.add_column(ratio=1)
    table.add_row(Text("caller", CALLER), Text(exchange.line))
    held = None if exchange.held is None else len(exchange.held)
    run: list[Piece] = []
    offset = 0
    for part in (*exchange.parts, None):
        if isinstance(part, Piece):
            run.append(part)
            continue
        length = sum(len(piece.text) for piece in run)
        if length:
            table.add_row(Text("agent", AGENT), reply_text(run, offset, spoken, held))
        offset, run = offset + length, []
        if part is not None:
            table.add_row(Text("tool", TOOL), Text.assemble((str(part), TOOL), (f" → {part.output or '…'}", QUIET)))
    if exchange.held is not None:
        cut = f"spoken over: the history holds {len(exchange.held)} of {len(exchange.text)} characters"
        table.add_row("", Text(cut, QUIET))
    for notice in exchange.notices:
        table.add_row("", Text(notice, QUIET))
    if exchange.problem:
        table.add_row("", Text(exchange.problem, BAD))
    return table


def numbers(exchange: Exchange) -> Table:
    """The turn's facts, one a line."""
    table = Table.grid(padding=(0, 1))
    for what, value in facts(exchange):
        table.add_row(Text(what, QUIET), Text(value))
    return table


class TurnRow(Horizontal):
    """One turn. It follows its exchange, and plays the reply at the pace of speech."""

    DEFAULT_CSS = """
    TurnRow { height: auto; margin-bottom: 1; }
    TurnRow .said { width: 1fr; height: auto; }
    TurnRow .numbers { width: 42; height: auto; margin-left: 2; padding-left: 1; border-left: solid #3b4252; }
    """

    def __init__(self, exchange: Exchange, rate: float) -> None:
        """rate: characters spoken a second."""
        super().__init__()
        self.exchange = exchange
        self.playback = Playback(rate)
        self._said = Static(classes="said")
        self._numbers = Static(classes="numbers")
        self._settled = False
        exchange.changed = self.show

    def compose(self) -> ComposeResult:
        yield self._said
        yield self._numbers

    def on_mount(self) -> None:
        self.show()

    @property
    def heard(self) -> int:
        """Code points of the reply that have been played by now."""
        return self.playback.heard(time.monotonic())

    @property
    def live(self) -> bool:
        """The reply is being made or played, and nobody spoke over it."""
        turn = self.exchange.turn
        if turn is None or self.exchange.held is not None or self.exchange.problem:
            return False
        return not turn.over or self.heard < len(self.exchange.text)

    def frame(self) -> None:
        """Draw how far it is spoken, the end of it too."""
        if not self._settled:
            self.show()

    def show(self) -> None:
        """Draw what there is by now."""
        self.playback.arrived(time.monotonic(), len(self.exchange.text))
        self._settled = not self.live  # looked at first: what is drawn is then not behind it
        self._said.update(said(self.exchange, self.heard))
        self._numbers.update(numbers(self.exchange))
