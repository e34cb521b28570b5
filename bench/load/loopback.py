"""A channel to a servicer in this process: the same coroutines, no socket, and no message is serialised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NoReturn, Self

import grpc

from firstword import Client
from firstword.v1 import call_service_pb2 as call_pb
from service.servicer import CallServicer

Metadata = Sequence[tuple[str, str | bytes]]


class _Aborted(Exception):
    """The servicer ended the stream with a status."""

    def __init__(self, code: grpc.StatusCode, details: str, trailers: Metadata) -> None:
        super().__init__(details)
        self.code, self.details, self.trailers = code, details, trailers


class _Context:
    """What a servicer needs of its ``grpc.aio.ServicerContext``."""

    def __init__(self, responses: asyncio.Queue[call_pb.CallResponse | None], metadata: Metadata) -> None:
        self._metadata = metadata
        self._responses = responses

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    async def write(self, response: call_pb.CallResponse) -> None:
        self._responses.put_nowait(response)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        raise _Aborted(code, details, trailing_metadata)


class _Stream:
    """One stream, as its client has it: what ``firstword.stream`` needs of a ``grpc.aio.StreamStreamCall``."""

    def __init__(
        self, servicer: CallServicer, requests: AsyncIterator[call_pb.CallRequest], metadata: Metadata
    ) -> None:
        self._responses: asyncio.Queue[call_pb.CallResponse | None] = asyncio.Queue()
        self._status = _Aborted(grpc.StatusCode.OK, "", ())
        self._on_done: list[Callable[[Any], None]] = []
        context: Any = _Context(self._responses, metadata)
        self._task = asyncio.create_task(servicer.Call(requests, context))
        self._task.add_done_callback(self._done)

    def add_done_callback(self, told: Callable[[Any], None]) -> None:
        self._on_done.append(told)

    async def code(self) -> grpc.StatusCode:
        return self._status.code

    async def details(self) -> str:
        return self._status.details

    async def initial_metadata(self) -> Metadata:
        return ()

    async def trailing_metadata(self) -> Metadata:
        return self._status.trailers

    def cancel(self) -> bool:
        return self._task.cancel()

    async def read(self) -> Any:
        """The next response, or ``grpc.aio.EOF``."""
        response = await self._responses.get()
        if response is not None:
            return response
        self._responses.put_nowait(None)  # for whoever reads once more
        status = self._status
        if status.code is grpc.StatusCode.OK:
            return grpc.aio.EOF
        if status.code is grpc.StatusCode.CANCELLED:
            raise asyncio.CancelledError
        none = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(status.code, none, none, status.details)

    def _done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._status = _Aborted(grpc.StatusCode.CANCELLED, "the client dropped the call", ())
        elif isinstance(error := task.exception(), _Aborted):
            self._status = error
        elif error is not None:
            self._status = _Aborted(grpc.StatusCode.UNKNOWN, repr(error), ())
        for told in self._on_done:
            told(self)
        self._responses.put_nowait(None)


class _Channel:
    """What a stub needs of a ``grpc.aio.Channel``."""

    def __init__(self, servicer: CallServicer) -> None:
        self._servicer = servicer

    def stream_stream(self, *args: Any, **kwargs: Any) -> Callable[..., _Stream]:
        """The one method that there is."""

        def call(requests: AsyncIterator[call_pb.CallRequest], *, metadata: Metadata = ()) -> _Stream:
            return _Stream(self._servicer, requests, metadata)

        return call

    async def close(self) -> None:
        pass


class LoopbackClient(Client):
    """The client of a service in this process."""

    def __init__(self, servicer: CallServicer) -> None:
        super().__init__("in this process")
        self.servicer = servicer

    async def __aenter__(self) -> Self:
        channel: Any = _Channel(self.servicer)
        self._channels = {"": channel}
        return self
