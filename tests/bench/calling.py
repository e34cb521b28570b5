"""A call of two turns, and runs of the load generator as they would be kept, for tests of what becomes of them."""

from __future__ import annotations

from bench.load.accounts import Run, TurnFigures
from bench.load.caller import Manner
from evals.calls import Heard, Kind, RecordedCall, SpokenTurn


def spoken_turn(text: str, final_ms: int) -> SpokenTurn:
    partial = Heard(final_ms // 2, Kind.PARTIAL, text[:4])
    return SpokenTurn((partial, Heard(final_ms // 2, Kind.EAGER, text), Heard(final_ms, Kind.FINAL, text)))


CALL = RecordedCall("told", "", [], (("look", "found"),), (spoken_turn("Hello?", 400), spoken_turn("And?", 200)))
FAST = Manner(speed=20.0)
TURN = TurnFigures(
    "a", 1, 0, 0.0, 0.0, 0.1, 0.1, None, 0.2, [], None, 5.0, [], 10, {"plain": 4}, False, False, True, "x", True, ""
)


def a_run(turns: list[TurnFigures], contender: str = "c", calls: int = 1) -> Run:
    return Run(contender, "records", calls, None, 0, 10.0, float(calls), 0.1, 0, [], turns, "here")
