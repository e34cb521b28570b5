"""Which gRPC status each problem is: one table, and the one place that builds ``google.rpc.Status``."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from service.problems import Problem, Reason

DOMAIN = "firstword"

STATUS: dict[Reason, grpc.StatusCode] = {
    Reason.INVALID_FIELD: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.NOT_OPEN: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.ALREADY_OPEN: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    Reason.SESSION_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.INPUT_TOO_LONG: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.TOO_MANY_TURNS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.UNKNOWN_MODEL: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.STALE_HISTORY: grpc.StatusCode.ABORTED,
    Reason.STALE_TURN: grpc.StatusCode.ABORTED,
    Reason.UNKNOWN_TURN: grpc.StatusCode.NOT_FOUND,
    Reason.UNKNOWN_TOOL_CALL: grpc.StatusCode.NOT_FOUND,
    Reason.TOO_MANY_QUESTIONS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.QUESTION_TIMED_OUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.FIRST_TOKEN_LATE: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.CANCELLED: grpc.StatusCode.CANCELLED,
    Reason.CALL_TOO_LONG: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.CALL_IDLE: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.MALFORMED_TOOL_CALL: grpc.StatusCode.INTERNAL,
    Reason.CONTEXT_FULL: grpc.StatusCode.OUT_OF_RANGE,
    Reason.OUT_OF_PAGES: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.TOO_MANY_CALLS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.TENANT_TOO_MANY_CALLS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.TENANT_TOO_MANY_OPENS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.TENANT_ABOVE_SHARE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.PAGES_COMMITTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.ENGINE_BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.ENGINE_SATURATED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.CLIENT_NOT_READING: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.ENGINE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.DRAINING: grpc.StatusCode.UNAVAILABLE,
    Reason.FORGED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.TOKEN_EXPIRED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.UNKNOWN_CALL: grpc.StatusCode.NOT_FOUND,
    Reason.STORE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.WARM_ELSEWHERE: grpc.StatusCode.UNAVAILABLE,
    Reason.SUPERSEDED: grpc.StatusCode.UNAVAILABLE,
    Reason.MOVED: grpc.StatusCode.ABORTED,
    Reason.NO_CREDENTIALS: grpc.StatusCode.UNAUTHENTICATED,
    Reason.INVALID_CREDENTIALS: grpc.StatusCode.UNAUTHENTICATED,
    Reason.CREDENTIALS_EXPIRED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.NO_TENANT: grpc.StatusCode.PERMISSION_DENIED,
    Reason.OTHER_TENANT: grpc.StatusCode.PERMISSION_DENIED,
    Reason.AUTHENTICATION_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
}


def status_of(problem: Problem) -> status_pb2.Status:
    """The problem as ``google.rpc.Status`` with ErrorInfo, and BadRequest and RetryInfo where they apply."""
    code: int = STATUS[problem.reason].value[0]
    details: list[any_pb2.Any] = []
    info = error_details_pb2.ErrorInfo(reason=problem.reason.value, domain=DOMAIN, metadata=problem.metadata)
    details.append(_packed(info))
    if problem.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=problem.field, description=problem.message)
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if problem.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(problem.retry_after_s * 1e9))
        details.append(_packed(retry))
    return status_pb2.Status(code=code, message=problem.message, details=details)


async def abort(context: grpc.aio.ServicerContext, problem: Problem) -> None:  # type: ignore[type-arg]
    """End the stream with the problem's status. Never returns: gRPC raises out of it."""
    status = status_of(problem)
    metadata = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(STATUS[problem.reason], problem.message, metadata)


def _packed(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
