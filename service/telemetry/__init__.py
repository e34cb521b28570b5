"""Spans and metrics of calls and turns.

``names`` has every name, ``record`` is what a turn writes down, ``metrics`` and ``tracing`` make figures and spans of
it when it is over, ``engines`` watches the engine processes, ``setup`` installs the SDK.
"""

from service.telemetry.metrics import Telemetry
from service.telemetry.record import Listened, ToolUse, TurnRecord
from service.telemetry.tracing import CallRecorder

__all__ = ["CallRecorder", "Listened", "Telemetry", "ToolUse", "TurnRecord"]
