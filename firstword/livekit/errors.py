"""What goes wrong, as LiveKit's retries and its FallbackAdapter want to be told."""

from __future__ import annotations

import grpc
from livekit.agents import APIConnectionError, APIError, APIStatusError, APITimeoutError

from firstword.errors import CLOSED, FirstwordError

_STATUS = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
}
_NEVER = frozenset({grpc.StatusCode.UNIMPLEMENTED})
"""As it was refused now it will be refused again, though it is not the client's fault."""


def api_error(error: FirstwordError | TimeoutError | ValueError, *, sent: bool) -> APIError:
    """sent: something of the reply has been passed on already, so that to ask again would say it twice.

    A service without room that says when to ask again (RESOURCE_EXHAUSTED) may be tried; one that says nothing, not.
    """
    if isinstance(error, TimeoutError):
        return APITimeoutError("the service gave nothing in time", retryable=not sent)
    if isinstance(error, ValueError):
        return APIStatusError(str(error), status_code=400, retryable=False)
    if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return APITimeoutError(str(error), retryable=not sent)
    cancelled = error.code is grpc.StatusCode.CANCELLED and error.reason != CLOSED
    if error.code not in _STATUS or cancelled:  # the line, a proxy, or a server that went away
        return APIConnectionError(str(error), retryable=not sent)
    full = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_after_s is None
    final = sent or full or error.code in _NEVER
    body = {"code": error.code.name, "reason": error.reason, "field": error.field, **error.metadata}
    return APIStatusError(str(error), status_code=_STATUS[error.code], body=body, retryable=not final)
