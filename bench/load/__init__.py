"""Many callers at once: how the service holds up as calls join, and where each of its settings stops keeping up.

Callers are simulated from the recorded calls (``evals.calls``). They speak in real time, whatever the service does: no
event of a caller waits for the service but those that follow what was said, which follow the clock of a synthesiser
that speaks it. A turn's latency counts from when its final was due, also where it was sent late.
"""
