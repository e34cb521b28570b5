"""Whether calls would outlive their server, and how they did."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.generate import naming
from deploy.generate.dashboards.queries import count_by
from deploy.generate.panels import RATE, Panel, lines
from service.telemetry import names


def store() -> Sequence[Panel]:
    append = f"rate({naming.histogram(names.STORE_APPEND_TIME)}_bucket[{RATE}])"
    used, limit = f"{naming.label(names.STORE_MEMORY)}_bytes", f"{naming.label(names.STORE_MEMORY_LIMIT)}_bytes"
    return (
        lines(
            "Append time",
            "A write of records to its answer. Nobody waits for it.",
            "s",
            {f"p{q}": f"histogram_quantile({q / 100:g}, sum by (le) ({append}))" for q in (50, 95, 99)},
        ),
        lines(
            "Waiting to be written",
            "How long the oldest record has waited, at the server where it waits longest.",
            "s",
            {"lag": f"max ({naming.label(names.STORE_LAG)}_seconds)"},
        ),
        lines(
            "Records and calls not safe yet",
            "unwritten: to be written; kept: those and what a failover may still lose (behind durable_seq).",
            "none",
            {
                "unwritten": f"sum ({naming.label(names.STORE_UNWRITTEN)})",
                "kept": f"sum ({naming.label(names.STORE_KEPT)})",
                "calls with records to be written": f"sum ({naming.label(names.STORE_PENDING)})",
                "calls that alone cannot be written": f"sum ({naming.label(names.STORE_PARKED)})",
            },
        ),
        lines(
            "Failures and returns",
            "A second: writes that failed, and times that the store answered again; and how many servers are behind.",
            "none",
            {
                "failures": f"sum (rate({naming.counter(names.STORE_FAILURES)}[{RATE}]))",
                "answered again": f"sum (rate({naming.counter(names.STORE_RECONNECTS)}[{RATE}]))",
                "servers behind": f"sum ({naming.label(names.STORE_BEHIND)})",
            },
        ),
        lines(
            "Memory of the store",
            "In use, and what may be; 0: no limit.",
            "bytes",
            {"used": f"max ({used})", "limit": f"max ({limit})"},
        ),
    )


def takeovers() -> Sequence[Panel]:
    return (
        lines(
            "Coming back to calls",
            "A second. here: to the server that has the call; the others are takeovers.",
            "reqps",
            {"{{firstword_resume_kind}}": count_by(names.RESUMED, names.RESUME)},
        ),
        lines(
            "Refused on coming back",
            "A second, by reason. WARM_ELSEWHERE sends the client to the server that has the call.",
            "reqps",
            {"{{error_type}}": count_by(names.RESUME_REFUSED, names.ERROR)},
        ),
        lines(
            "Leases lost and writes refused",
            "A second: calls that turned out to be another server's, and writes that the store refused for it.",
            "reqps",
            {
                "leases lost": f"sum (rate({naming.counter(names.STORE_LEASES_LOST)}[{RATE}]))",
                "writes refused": f"sum (rate({naming.counter(names.STORE_FENCED)}[{RATE}]))",
            },
        ),
    )
