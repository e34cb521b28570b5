"""What can go wrong with a call, by name. Transport-free: ``service.errors`` says which gRPC status each one is."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass


class Reason(enum.Enum):
    """Stable names that clients may branch on (``google.rpc.ErrorInfo.reason``)."""

    INVALID_FIELD = "INVALID_FIELD"
    NOT_OPEN = "NOT_OPEN"
    ALREADY_OPEN = "ALREADY_OPEN"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    SESSION_EXISTS = "SESSION_EXISTS"
    INPUT_TOO_LONG = "INPUT_TOO_LONG"
    TOO_MANY_TURNS = "TOO_MANY_TURNS"
    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    STALE_TURN = "STALE_TURN"
    UNKNOWN_TURN = "UNKNOWN_TURN"
    UNKNOWN_TOOL_CALL = "UNKNOWN_TOOL_CALL"
    TOO_MANY_TOOL_ROUNDS = "TOO_MANY_TOOL_ROUNDS"
    CONTEXT_FULL = "CONTEXT_FULL"
    OUT_OF_PAGES = "OUT_OF_PAGES"
    TOO_MANY_CALLS = "TOO_MANY_CALLS"
    CLIENT_NOT_READING = "CLIENT_NOT_READING"
    ENGINE_UNAVAILABLE = "ENGINE_UNAVAILABLE"
    DRAINING = "DRAINING"
    INTERNAL = "INTERNAL"


@dataclass(eq=False)
class Problem(Exception):
    """Something that a client has to be told.

    field: path of the client event's field at fault. retry_after_s: when the same may be tried again; None: never
    as it is.
    """

    reason: Reason
    message: str
    field: str = ""
    retry_after_s: float | None = None
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.message}"


def invalid(name: str, message: str) -> Problem:
    """The client event's field ``name`` cannot be used."""
    return Problem(Reason.INVALID_FIELD, f"{name}: {message}", field=name)


def unimplemented(what: str) -> Problem:
    return Problem(Reason.UNIMPLEMENTED, f"{what} is not implemented yet", metadata={"feature": what})
