"""Who is let in, and what they are let in by."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.generate import naming
from deploy.generate.panels import Panel, lines
from service.telemetry import names


def security() -> Sequence[Panel]:
    def grown(counter: str, attribute: str, window: str) -> str:
        return f"sum by ({naming.label(attribute)}) (increase({naming.counter(counter)}[{window}]))"

    return (
        lines(
            "Streams let in",
            "In five minutes, by what their clients showed.",
            "none",
            {"{{firstword_auth_means}}": grown(names.ENTERED, names.MEANS, "5m")},
            stacked=True,
        ),
        lines(
            "Streams turned away",
            "In five minutes, by reason.",
            "none",
            {"{{error_type}}": grown(names.TURNED_AWAY, names.ERROR, "5m")},
            stacked=True,
        ),
        lines(
            "Certificate valid for",
            "That of the server where it ends first. At three days somebody is woken.",
            "s",
            {"at least": f"min ({naming.label(names.CERTIFICATE_EXPIRES)}_seconds)"},
        ),
        lines(
            "Certificates and keys replaced",
            "In an hour. failed: what came could not be used, and the old one stayed.",
            "none",
            {
                "{{firstword_security_file}}": grown(names.RELOADS, names.RELOADED, "1h"),
                "{{firstword_security_file}} failed": grown(names.RELOAD_FAILURES, names.RELOADED, "1h"),
            },
        ),
    )
