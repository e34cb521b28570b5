"""Stands before every method of the server: nothing runs before it is known who asks.

Credentials are asked for once, when a stream opens. What is in progress then is never held up by them, and a call whose
credentials run out goes on: SECURITY.md says why.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import grpc

from service.errors import abort
from service.problems import Problem, Reason
from service.rate import TokenBucket
from service.security.authenticator import Authenticator
from service.security.identity import authenticated

log = logging.getLogger(__name__)

OPEN_TO_ALL = "/grpc.health.v1.Health/"
"""Probes and load balancers have no credentials, and learn nothing but whether calls are taken."""

LOGGED_PER_S, LOGGED_AT_ONCE = 1.0, 20
"""Refusals that are logged: strangers must not fill the disk. All are counted."""

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class Entries(Protocol):
    """Counts who came in, and who did not."""

    def guarding(self) -> None: ...
    def entered(self, means: str) -> None: ...
    def turned_away(self, reason: str) -> None: ...


class Guard(grpc.aio.ServerInterceptor):
    def __init__(self, authenticator: Authenticator, told: Entries) -> None:
        self._authenticator = authenticator
        self._told = told
        self._logged = TokenBucket(LOGGED_PER_S, LOGGED_AT_ONCE)
        told.guarding()

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """The method's handler, with the guard before it. It is there that the connection's certificate is known."""
        handler = await continuation(details)
        if handler is None or details.method.startswith(OPEN_TO_ALL):
            return handler
        make = _MAKE[handler.request_streaming, handler.response_streaming]
        inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        return make(self._guarded(inner, details.method), handler.request_deserializer, handler.response_serializer)

    def _guarded(self, inner: Any, method: str) -> Any:
        """The same behaviour for those who may. gRPC tells the two kinds of behaviour apart by what kind they are."""
        if inspect.isasyncgenfunction(inner):

            async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
                await self._enter(context, method)
                async for response in inner(request, context):
                    yield response

            return stream
        if not inspect.iscoroutinefunction(inner):
            raise TypeError(f"{method} is no coroutine: who runs it could not be told")

        async def whole(request: Any, context: Any) -> Any:
            await self._enter(context, method)
            return await inner(request, context)

        return whole

    async def _enter(self, context: Any, method: str) -> None:
        """Note who the stream is of; end it where that is nobody."""
        try:
            metadata = context.invocation_metadata() or ()
            principal = await self._authenticator.principal(metadata, context.auth_context() or {})
        except Problem as problem:
            await self._turn_away(problem, context, method)
        except Exception as error:
            failed = Problem(Reason.INTERNAL, "the service failed to authenticate", cause=type(error).__name__)
            await self._turn_away(failed, context, method, error)
        else:
            self._told.entered(principal.means)
            authenticated.set(principal)
            about = {"tenant": principal.tenant, "by": principal.means, "who": principal.name, "method": method}
            log.info("let in", extra={**about, "peer": context.peer()})

    async def _turn_away(self, problem: Problem, context: Any, method: str, error: Exception | None = None) -> None:
        """Never returns. error: that kept us from finding out."""
        self._told.turned_away(problem.reason.value)
        if not self._logged.take(time.monotonic()):
            about = {"reason": problem.reason.value, "cause": problem.cause, "method": method, "peer": context.peer()}
            log.warning("turned away", extra=about, exc_info=error)
        await abort(context, problem)


_MAKE = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
