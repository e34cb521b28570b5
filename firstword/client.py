"""The way to the service: one channel, any number of calls."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc

from firstword import wire
from firstword.call import Call
from firstword.credentials import AUTHORIZATION, Tls, Token, metadata_of, server_name
from firstword.errors import CLOSED, CallError, CallFailed
from firstword.events import Notice
from firstword.types import AnswerAhead, ContextPolicy, Fallback, Item, Limits, Sampling, Tool, ToolChoice
from firstword.v1 import call_service_pb2_grpc
from firstword.v1 import client_events_pb2 as client_pb

if TYPE_CHECKING:
    from firstword.v1.call_service_pb2_grpc import CallServiceAsyncStub

CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    # A call may be silent for minutes, and a server that has gone without a word must be found out all the same.
    ("grpc.keepalive_time_ms", 5_000),
    # gRPC waits for the answer to a ping by this one; ``keepalive_timeout_ms`` alone ends nothing (grpc pull 39239).
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Somebody is on the phone: a server that is away is looked for again soon, and not for minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A call stays on one server: spread them over all addresses that the name has.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
)


class Client:
    """A service's client: ``async with Client("voice.example.com:443", tls=True, api_key="fw_...") as client``.

    target: any gRPC target. tls: True, or which certificates; without it nothing is encrypted, credentials neither.
    credentials: of gRPC's own making, in place of ``tls``. api_key, or token: who the client is to the service; a token
    may be given by a function, which is asked whenever a stream opens, and must not wait for anything. metadata: sent
    with every stream. options: of the channel, in place of those of the same name in ``CHANNEL_OPTIONS``.
    resume_timeout_s: how long a call may be without a server before it has failed; 0: it fails with its stream.
    affinity_header: in lower case, by which a gateway tells streams that belong together: what it answered with is sent
    when the call resumes, so that it reaches the server that is warm for it.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: Tls | bool = False,
        api_key: str | None = None,
        token: Token | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Mapping[str, str] | None = None,
        options: Sequence[tuple[str, Any]] = (),
        resume_timeout_s: float = 60.0,
        affinity_header: str = "x-firstword-pod",
    ) -> None:
        """Raises ValueError where two of them say the same thing, OSError for a certificate that cannot be read."""
        if tls and credentials is not None:
            raise ValueError("tls and credentials are two ways to say one thing")
        if sum((api_key is not None, token is not None, AUTHORIZATION in (metadata or {}))) > 1:
            raise ValueError("api_key, token and metadata's authorization are three ways to say one thing")
        if tls:
            credentials = (Tls() if tls is True else tls).channel_credentials()
        self._target = target
        self._credentials = credentials
        self._token = token if api_key is None else api_key
        self._metadata = dict(metadata or {})
        self._options = tuple({**dict(CHANNEL_OPTIONS), **dict(options)}.items())
        self._resume_timeout_s = resume_timeout_s
        self._affinity_header = affinity_header
        self._channels: dict[str, grpc.aio.Channel] | None = None

    async def __aenter__(self) -> Self:
        self._channels = {}
        self._stub("")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; calls that are still open break off. Idempotent."""
        channels, self._channels = self._channels, None
        for channel in (channels or {}).values():
            await channel.close()

    def _stub(self, address: str) -> CallServiceAsyncStub:
        """For a server at its own address, or, for the empty one, wherever the target leads. Raises CallFailed when the
        client is closed.
        """
        if self._channels is None:
            raise CallFailed(grpc.StatusCode.CANCELLED, CLOSED, "the client was closed")
        if address not in self._channels:
            target = address or self._target
            if self._credentials is None:
                self._channels[address] = grpc.aio.insecure_channel(target, self._options)
            else:
                # A server of the service that is named by its address has the certificate of the service.
                own = (("grpc.ssl_target_name_override", server_name(self._target)),) if address else ()
                options = (*own, *self._options)
                self._channels[address] = grpc.aio.secure_channel(target, self._credentials, options)
        return call_service_pb2_grpc.CallServiceStub(self._channels[address])

    def call(
        self,
        *,
        system: str = "",
        tools: Sequence[Tool] = (),
        items: Sequence[Item] = (),
        model: str = "",
        session_id: str = "",
        sampling: Sampling | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] | None = None,
        tool_choice: ToolChoice | None = None,
        response_schema: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        first_token_deadline_ms: int | None = None,
        fallbacks: Sequence[Fallback] = (),
        answer_ahead: AnswerAhead | None = None,
        progress_notices: bool = False,
        context_policy: ContextPolicy | None = None,
        caller_key: str = "",
        metadata: Mapping[str, str] | None = None,
        on_notice: Callable[[Notice | CallError], object] | None = None,
        patience_s: float = 0.0,
    ) -> Call:
        """A call, to be entered with ``async with``. Empty and None: as the service has it.

        system: system prompt. items: what was said before, without it. session_id: the client's name for the call; one
        that is opened again, as the service was gone before it answered, needs another, for the first may have it.
        sampling, or its fields one by one, which count where both are given. tool_choice: how freely tools are called;
        None: the model decides. response_schema: JSON Schema that the text of every reply is held to.
        first_token_deadline_ms: of every turn, from its commit. fallbacks: who answers where it will be missed, in this
        order; without any the model goes on, late. answer_ahead: how replies are made ahead.
        progress_notices: send also the notices that are there to be shown (``prefilled_ahead``, ``answer_ahead``).
        context_policy: what happens when the context is full. caller_key: opaque key under which what the
        store holds of the caller can be deleted. on_notice: sees every notice, and the refusals that nothing waits for.
        patience_s: how long a call for which the service has no room asks again, whenever the service says; 0: it
        raises ServiceBusy at once.

        Raises ValueError and TypeError for what the contract cannot hold, RuntimeError outside ``async with`` of the
        client.
        """
        if self._channels is None:
            raise RuntimeError("a client makes calls inside `async with`")
        given: dict[str, Any] = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "seed": seed,
            "max_tokens": max_tokens,
            "stop": stop,
        }
        chosen = dataclasses.replace(
            sampling or Sampling(), **{name: value for name, value in given.items() if value is not None}
        )
        opening = client_pb.Open(
            session_id=session_id,
            model=model,
            system_prompt=system,
            items=map(wire.item, items),
            tools=map(wire.tool, tools),
            sampling=wire.sampling(chosen, seed=False),
            seed=chosen.seed,
            tool_choice=wire.tool_choice(tool_choice),
            response_format=wire.response_format(response_schema),
            limits=wire.limits(limits or Limits()),
            context_policy=wire.context_policy(context_policy or ContextPolicy()),
            first_token_deadline_ms=first_token_deadline_ms,
            fallbacks=map(wire.fallback, fallbacks),
            answer_ahead=wire.answer_ahead(answer_ahead or AnswerAhead()),
            progress_notices=progress_notices,
            caller_key=caller_key,
        )
        known = metadata_of({**self._metadata, **(metadata or {})}, self._token)
        return Call(
            self._stub, opening, tools, known, on_notice, self._resume_timeout_s, patience_s, self._affinity_header
        )
