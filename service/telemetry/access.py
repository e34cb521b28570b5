"""Who came in and who did not, and what became of certificates and keys that were replaced.

Of the whole process, and there before its model is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from service.problems import Reason
from service.telemetry import names

MEANS = ("api_key", "jwt", "certificate")
TURNED_AWAY = (
    Reason.NO_CREDENTIALS,
    Reason.INVALID_CREDENTIALS,
    Reason.CREDENTIALS_EXPIRED,
    Reason.NO_TENANT,
    Reason.OTHER_TENANT,
    Reason.AUTHENTICATION_UNAVAILABLE,
    Reason.INTERNAL,
)


class AccessTelemetry:
    """Its instruments. Knows the OpenTelemetry API only."""

    def __init__(self) -> None:
        self._meter = meter = metrics.get_meter(names.SCOPE)
        self._entered = meter.create_counter(names.ENTERED, "{stream}", "Streams whose credentials were good")
        self._turned_away = meter.create_counter(names.TURNED_AWAY, "{stream}", "Streams whose credentials were not")
        self._reloads = meter.create_counter(names.RELOADS, "{reload}", "Certificates, keys and key sets replaced")
        self._failures = meter.create_counter(names.RELOAD_FAILURES, "{failure}", "New ones that could not be used")

    def guarding(self) -> None:
        """Somebody may be turned away, and nobody has been yet: that is told, as in ``watching``."""
        for reason in TURNED_AWAY:
            self._turned_away.add(0, {names.ERROR: reason.value})
        for means in MEANS:
            self._entered.add(0, {names.MEANS: means})

    def entered(self, means: str) -> None:
        """A stream was let in by one of ``MEANS``."""
        self._entered.add(1, {names.MEANS: means})

    def turned_away(self, reason: str) -> None:
        """One was not. reason: of ``service.problems``."""
        self._turned_away.add(1, {names.ERROR: reason})

    def watching(self, what: str) -> None:
        """Something may be replaced, and has not been yet: that is told, or whoever asks for increases would miss the
        first.
        """
        for counter in (self._reloads, self._failures):
            counter.add(0, {names.RELOADED: what})

    def reloaded(self, what: str) -> None:
        """Something new is in use: "certificate", "api_keys", "jwks" or "jwks_url"."""
        self._reloads.add(1, {names.RELOADED: what})

    def not_reloaded(self, what: str) -> None:
        """Something new is not."""
        self._failures.add(1, {names.RELOADED: what})

    def watch_certificate(self, expires_in_s: Callable[[], float]) -> None:
        """Observe how long the server's certificate is still valid."""

        def observe(options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(expires_in_s())]

        self._meter.create_observable_gauge(
            names.CERTIFICATE_EXPIRES, [observe], "s", "How long the certificate in use is still valid"
        )
