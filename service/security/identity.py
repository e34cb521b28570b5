"""Whose a stream is, from the guard that has found out to the servicer that wants to know."""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass

TENANT_NAME = re.compile(r"[!-~]{1,128}")
"""Printable ASCII without blanks: it is part of names in logs, in the store and in the engine."""


@dataclass(frozen=True)
class Principal:
    """Who has opened a stream. means: "api_key", "jwt" or "certificate". name: of the key, the token's subject, or of
    the certificate; for logs.
    """

    tenant: str
    means: str
    name: str = ""


authenticated: ContextVar[Principal] = ContextVar("firstword_principal")
"""Of the stream whose method runs in this context. Not set where nobody has asked for credentials."""


def everybody() -> str:
    """The tenant of a stream where nobody is asked who they are."""
    return ""


def tenant_of_stream() -> str:
    """The tenant of the stream whose method runs in this context. Raises LookupError where nobody has found out, so
    that a mistake lets nobody in.
    """
    return authenticated.get().tenant
