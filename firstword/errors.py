"""What goes wrong: with one event or turn (``CallError``), or with the call as a whole (``CallFailed``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from firstword.v1 import error_pb2 as error_pb

STATUS_DETAILS = "grpc-status-details-bin"
"""The trailer in which gRPC servers send a ``google.rpc.Status``."""

CLOSED = "CLOSED"
"""Reason of a ``CallFailed`` where nothing went wrong: one side ended the call while something waited for it."""

Trailers = Iterable[tuple[str, str | bytes]]
"""What gRPC has of a stream's trailing metadata."""

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class FirstwordError(Exception):
    """Base of what this package raises about a call.

    code: what kind of error. reason: a stable name to branch on, such as ``STALE_TURN``; empty where the service gave
    none. message: for people. field: path of the event's field at fault, such as ``final.text``; empty: none.
    retry_after_s: when the same may be tried again; None: not as it is. metadata: further facts by name.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        field: str = "",
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{reason or code.name}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s
        self.metadata = dict(metadata or {})


class CallError(FirstwordError):
    """Something went wrong with one event or one turn. The call goes on.

    turn_id: the turn that it is about; None: none.
    """

    turn_id: int | None = None

    @classmethod
    def of(cls, error: error_pb.Error) -> Self:
        """The error that the service sent in-band."""
        made = cls(
            _CODES.get(error.code, grpc.StatusCode.UNKNOWN),
            error.reason,
            error.message,
            field=error.field,
            retry_after_s=error.retry_after_ms / 1000 if error.HasField("retry_after_ms") else None,
            metadata=error.metadata,
        )
        made.turn_id = error.turn_id if error.HasField("turn_id") else None
        return made


class CallFailed(FirstwordError):
    """The call is over: it could not begin, its stream broke, or it was ended. Everything that waits for it gets this.

    ``code`` is the stream's gRPC status. Where nothing went wrong the reason is ``CLOSED``: with OK the call was ended
    in order, with CANCELLED the client dropped it.
    """

    @classmethod
    def of(cls, code: grpc.StatusCode, message: str, trailers: Trailers) -> Self:
        """The status of the stream, with what its details among the trailers say."""
        status = _details_of(trailers)
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        for detail in status.details:
            for known in (info, bad, retry):
                detail.Unpack(known)  # leaves a message of another type alone
        return cls(
            code,
            info.reason,
            message,
            field=bad.field_violations[0].field if bad.field_violations else "",
            retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None,
            metadata=info.metadata,
        )


class ServiceBusy(CallFailed):
    """The call did not begin: the service has no room for it now. ``retry_after_s`` says when to ask again, and
    ``reason`` what there is too little of: ``TOO_MANY_CALLS``, ``TENANT_TOO_MANY_CALLS``, ``TENANT_ABOVE_SHARE``,
    ``PAGES_COMMITTED``, ``ENGINE_BUSY``, ``ENGINE_SATURATED``; or that the service starts or stops:
    ``ENGINE_UNAVAILABLE``, ``DRAINING``.
    """

    @classmethod
    def like(cls, failed: CallFailed) -> Self:
        """The same failure, of a call that did not begin."""
        return cls(
            failed.code,
            failed.reason,
            failed.message,
            field=failed.field,
            retry_after_s=failed.retry_after_s,
            metadata=failed.metadata,
        )


def _details_of(trailers: Trailers) -> status_pb2.Status:
    """The ``google.rpc.Status`` among the trailers; an empty one where there is none that can be read."""
    for key, value in trailers:
        if key == STATUS_DETAILS and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:  # a proxy's, perhaps: the code and the message are there all the same
                break
    return status_pb2.Status()
