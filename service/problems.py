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
    STALE_HISTORY = "STALE_HISTORY"
    STALE_TURN = "STALE_TURN"
    UNKNOWN_TURN = "UNKNOWN_TURN"
    UNKNOWN_TOOL_CALL = "UNKNOWN_TOOL_CALL"
    TOO_MANY_QUESTIONS = "TOO_MANY_QUESTIONS"
    QUESTION_TIMED_OUT = "QUESTION_TIMED_OUT"
    FIRST_TOKEN_LATE = "FIRST_TOKEN_LATE"
    CANCELLED = "CANCELLED"
    CALL_TOO_LONG = "CALL_TOO_LONG"
    CALL_IDLE = "CALL_IDLE"
    MALFORMED_TOOL_CALL = "MALFORMED_TOOL_CALL"
    CONTEXT_FULL = "CONTEXT_FULL"
    OUT_OF_PAGES = "OUT_OF_PAGES"
    TOO_MANY_CALLS = "TOO_MANY_CALLS"
    TENANT_TOO_MANY_CALLS = "TENANT_TOO_MANY_CALLS"
    TENANT_TOO_MANY_OPENS = "TENANT_TOO_MANY_OPENS"
    TENANT_ABOVE_SHARE = "TENANT_ABOVE_SHARE"
    PAGES_COMMITTED = "PAGES_COMMITTED"
    ENGINE_BUSY = "ENGINE_BUSY"
    ENGINE_SATURATED = "ENGINE_SATURATED"
    CLIENT_NOT_READING = "CLIENT_NOT_READING"
    ENGINE_UNAVAILABLE = "ENGINE_UNAVAILABLE"
    DRAINING = "DRAINING"
    FORGED = "FORGED"
    TOKEN_EXPIRED = "TOKEN_EXPIRED"
    UNKNOWN_CALL = "UNKNOWN_CALL"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    WARM_ELSEWHERE = "WARM_ELSEWHERE"
    SUPERSEDED = "SUPERSEDED"
    MOVED = "MOVED"
    NO_CREDENTIALS = "NO_CREDENTIALS"
    INVALID_CREDENTIALS = "INVALID_CREDENTIALS"
    CREDENTIALS_EXPIRED = "CREDENTIALS_EXPIRED"
    NO_TENANT = "NO_TENANT"
    OTHER_TENANT = "OTHER_TENANT"
    AUTHENTICATION_UNAVAILABLE = "AUTHENTICATION_UNAVAILABLE"
    INTERNAL = "INTERNAL"


class Guardrail(enum.Enum):
    """Limits of a call that a client is told of when they are reached."""

    TOOL_CALLS_PER_TURN = "max_tool_calls_per_turn"
    TOOL_CALLS_PER_CALL = "max_tool_calls_per_call"
    OUTPUT_TOKENS_PER_TURN = "max_output_tokens_per_turn"
    TURNS = "max_turns"
    CALL_DURATION = "max_call_ms"
    IDLE_TIME = "max_idle_ms"
    INPUT_SIZE = "max_input_code_points"


MAX_MESSAGE = 256
"""Code points of a message."""


@dataclass(eq=False)
class Problem(Exception):
    """Something that a client has to be told. A longer message is cut: it may name what the client called something,
    and a status that does not fit into a header list is no status.

    field: path of the client event's field at fault. retry_after_s: when the same may be tried again; None: never
    as it is. reached: the guardrail that refuses, and its value in force. cause: more, for the operator's log; never
    sent.
    """

    reason: Reason
    message: str
    field: str = ""
    retry_after_s: float | None = None
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    reached: tuple[Guardrail, int] | None = None
    cause: str = ""

    def __post_init__(self) -> None:
        if len(self.message) > MAX_MESSAGE:
            self.message = self.message[: MAX_MESSAGE - 1] + "…"

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.message}"


def invalid(name: str, message: str) -> Problem:
    """The client event's field ``name`` cannot be used."""
    return Problem(Reason.INVALID_FIELD, f"{name}: {message}", field=name)


def unimplemented(what: str) -> Problem:
    return Problem(Reason.UNIMPLEMENTED, f"{what} is not implemented yet", metadata={"feature": what})


def generation_problem(finish: str, error: str) -> Problem | None:
    """What kept a generation from its end, by the value of ``engine.session.Finish``; None where nothing did."""
    match finish:
        case "out_of_pages":
            return Problem(Reason.OUT_OF_PAGES, "no room for keys and values", retry_after_s=1.0)
        case "failed":
            return Problem(Reason.INTERNAL, f"the engine failed: {error}")
        case _:
            return None


def engine_problem(reason: str, message: str) -> Problem:
    """What an error of ``engine.errors``, given by its name, is to a client."""
    match reason:
        case "ContextFull":
            return Problem(Reason.CONTEXT_FULL, message)
        case "InvalidConstraint":
            return Problem(Reason.INVALID_FIELD, message)
        case "OutOfPages":
            return Problem(Reason.OUT_OF_PAGES, message, retry_after_s=1.0)
        case _:
            return Problem(Reason.INTERNAL, f"the engine failed: {reason}")
