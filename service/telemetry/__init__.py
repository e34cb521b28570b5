"""Spans and metrics of calls and turns. ``setup`` installs the SDK; ``recording`` names and measures things."""

from service.telemetry.recording import CallRecorder, Telemetry, TurnRecord

__all__ = ["CallRecorder", "Telemetry", "TurnRecord"]
