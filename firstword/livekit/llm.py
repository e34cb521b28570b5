"""The language model of a LiveKit agent: one call of the service, which every ``chat()`` goes on with."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from livekit.agents import DEFAULT_API_CONNECT_OPTIONS, NOT_GIVEN, APIConnectOptions, NotGivenOr
from livekit.agents import llm as lk

from firstword.call import Call
from firstword.client import Client
from firstword.credentials import Tls, Token
from firstword.livekit.context import View, tool_choice_of
from firstword.livekit.conversation import Conversation
from firstword.livekit.hearing import Hearing
from firstword.livekit.stream import LLMStream
from firstword.types import TurnOptions

if TYPE_CHECKING:
    from livekit.agents import AgentSession

GRACE_S = 0.1
"""How long a ``chat()`` waits for the one before it, which LiveKit may still be cancelling, before it counts as another
that is meant to run beside it.
"""
_LIVEKITS = frozenset({"self", "system", "tools", "items", "tool_choice"})
_OPTIONS = inspect.signature(Client.call).parameters.keys() - _LIVEKITS


class LLM(lk.LLM[Any]):
    """``AgentSession(llm=firstword.livekit.LLM("localhost:50051"))``: one of its own for each session.

    target: of the service, or a client that is open, and that whoever gives it closes. tls, api_key, token: as for
    ``Client``. options: of the call, as for ``Client.call``: ``model``, ``sampling``, ``seed``, ``limits``,
    ``first_token_deadline_ms`` and so on; what it says of system prompt, tools and history is LiveKit's to say. Where
    the call fails, the next ``chat()`` opens another, under a name that the service makes.

    A ``chat()`` that comes while a reply is being made, as a FallbackAdapter's probe, has a call of its own; so has one
    of a tool, whose context has nothing of the conversation.
    """

    def __init__(
        self,
        target: str | Client,
        *,
        tls: Tls | bool = False,
        api_key: str | None = None,
        token: Token | None = None,
        **options: Any,
    ) -> None:
        """Raises TypeError for an option that there is not, and what ``Client`` raises."""
        super().__init__()
        if unknown := options.keys() - _OPTIONS:
            raise TypeError(f"no options of a call here: {', '.join(sorted(unknown))}")
        self._given = isinstance(target, Client)
        self._client = target if isinstance(target, Client) else Client(target, tls=tls, api_key=api_key, token=token)
        self._entered = self._given
        self._name = options.pop("session_id", "")
        self._options = options
        self._conversation = Conversation(self._make)
        self._serving = asyncio.Lock()
        self._hearing: Hearing | None = None

    @property
    def model(self) -> str:
        """That answers, once the call is open; before that, the one that was asked for."""
        call = self._conversation.call
        return call.opened.model if call is not None else self._options.get("model") or "unknown"

    @property
    def provider(self) -> str:
        return "firstword"

    def chat(
        self,
        *,
        chat_ctx: lk.ChatContext,
        tools: list[lk.Tool] | None = None,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
        parallel_tool_calls: NotGivenOr[bool] = NOT_GIVEN,
        tool_choice: NotGivenOr[lk.ToolChoice] = NOT_GIVEN,
        extra_kwargs: NotGivenOr[dict[str, Any]] = NOT_GIVEN,
    ) -> LLMStream:
        """A reply. extra_kwargs: fields of ``TurnOptions``, such as ``sampling`` or ``response_schema``. Raises
        TypeError for others.
        """
        more = extra_kwargs if isinstance(extra_kwargs, dict) else {}
        options = TurnOptions(tool_choice=tool_choice_of(tool_choice, parallel_tool_calls), **more)
        return LLMStream(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options, options=options)

    def attach(self, session: AgentSession[Any]) -> None:
        """Pass on what the session hears while its caller speaks, so that it is prefilled before the turn is complete,
        and prepare the instructions and tools of its agent. Ends with the session, or with ``aclose``. Once, and
        before ``session.start``.
        """
        if self._hearing is not None:
            raise RuntimeError("a session is attached already")
        self._hearing = Hearing(session, self._conversation)

    @asynccontextmanager
    async def serving(self, view: View) -> AsyncIterator[Conversation]:
        """The conversation that is to answer a view: the session's, or one for this alone where that is in use."""
        if self._conversation.concerns(view) and await self._free():
            try:
                yield self._conversation
            finally:
                self._serving.release()
            return
        beside = Conversation(self._make_beside)
        try:
            yield beside
        finally:
            await beside.close()

    async def _free(self) -> bool:
        """Take the session's conversation, if it is free or soon will be."""
        try:
            async with asyncio.timeout(GRACE_S):
                return await self._serving.acquire()
        except TimeoutError:
            return False

    async def _make(self, view: View) -> Call:
        name, self._name = self._name, ""
        return await self._make_beside(view, name)

    async def _make_beside(self, view: View, name: str = "") -> Call:
        if not self._entered:
            await self._client.__aenter__()
            self._entered = True
        begin: dict[str, Any] = {"system": view.system, "tools": view.tools, "items": view.items, "session_id": name}
        return self._client.call(**begin, **self._options)

    async def _prewarm_impl(self) -> None:
        """The call takes its place, and the line is there, before anybody speaks."""
        await self._conversation.open(View())

    async def aclose(self) -> None:
        """End the call. Idempotent."""
        await super().aclose()
        if self._hearing is not None:
            await self._hearing.aclose()
        await self._conversation.close()
        if not self._given:
            await self._client.close()
