"""Whether what the service answers is what it says that it answers: ``service.errors`` is the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import grpc
from google.rpc import error_details_pb2, status_pb2

from firstword.v1 import error_pb2 as error_pb
from service.errors import DOMAIN, STATUS
from service.problems import Reason
from tests.fuzz.events import CANARY

TOO_LARGE = "message larger than max"
"""What gRPC itself says of it, with RESOURCE_EXHAUSTED and no details."""

WRITE_FAILED = "Internal error from Core"
"""What grpc.aio puts in the place of a status that arrives while a write is under way (see ``firstword.line``)."""


@dataclass
class Tally:
    """What came of some scripts. answers: by (what was answered, status, reason). findings: (seed, what is wrong)."""

    scripts: int = 0
    requests: int = 0
    events: int = 0
    resumed: int = 0
    answers: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    findings: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.scripts += other.scripts
        self.requests += other.requests
        self.events += other.events
        self.resumed += other.resumed
        self.answers += other.answers
        self.findings += other.findings

    def stream_ended(
        self, code: grpc.StatusCode, message: str, metadata: Iterable[tuple[str, str | bytes]], *, own: bool
    ) -> str:
        """Enter the status of a stream; returns what is wrong with it. own: the client has cancelled it."""
        details = next((value for key, value in metadata if key == "grpc-status-details-bin"), b"")
        reason, wrong = "", ""
        if details:
            assert isinstance(details, bytes)
            status, info = status_pb2.Status.FromString(details), error_details_pb2.ErrorInfo()
            if not any(part.Unpack(info) for part in status.details):
                wrong = "a status without ErrorInfo"
            reason = info.reason
            wrong = wrong or _wrong(reason, code, info.domain, message)
        elif code is grpc.StatusCode.CANCELLED and own:
            reason = "(the client's own)"
        elif code is grpc.StatusCode.RESOURCE_EXHAUSTED and TOO_LARGE in message:
            reason = "(gRPC: message too large)"
        elif code is grpc.StatusCode.INTERNAL and message == WRITE_FAILED:
            reason = "(gRPC of the client: a write came too late)"
        elif code is not grpc.StatusCode.OK:
            wrong = f"the stream ended with {code.name} and no details: {message}"
        self.answers["stream", code.name, reason] += 1
        return wrong

    def refused(self, error: error_pb.Error) -> str:
        """Enter an in-band error; returns what is wrong with it."""
        name = error_pb.ErrorCode.Name(error.code).removeprefix("ERROR_CODE_")
        self.answers["event", name, error.reason] += 1
        code = grpc.StatusCode.__members__.get(name)
        return f"error code {error.code}" if code is None else _wrong(error.reason, code, DOMAIN, error.message)


def _wrong(reason: str, code: grpc.StatusCode, domain: str, message: str) -> str:
    if domain != DOMAIN or reason not in Reason.__members__:
        return f"an undocumented reason: {domain} {reason}"
    if STATUS[Reason[reason]] is not code:
        return f"{reason} came as {code.name}"
    if CANARY in message:
        return f"{reason} repeats what was said"
    return f"the service failed: {message}" if reason == Reason.INTERNAL.value else ""
