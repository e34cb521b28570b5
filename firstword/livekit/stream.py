"""One ``chat()`` of LiveKit: a reply of the service as chunks."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from livekit.agents import APIConnectOptions
from livekit.agents import llm as lk

from firstword.errors import FirstwordError
from firstword.events import TextDelta, TurnEvent, Usage
from firstword.livekit.context import view_of
from firstword.livekit.errors import api_error
from firstword.types import ToolCall, TurnOptions
from firstword.wire import json_text

if TYPE_CHECKING:
    from firstword.livekit.llm import LLM


class LLMStream(lk.LLMStream):
    """Made by ``LLM.chat``. Closing it, or cancelling what reads it, cuts the reply."""

    def __init__(
        self,
        model: LLM,
        *,
        chat_ctx: lk.ChatContext,
        tools: list[lk.Tool],
        conn_options: APIConnectOptions,
        options: TurnOptions,
    ) -> None:
        super().__init__(model, chat_ctx=chat_ctx, tools=tools, conn_options=conn_options)
        self._model = model
        self._options = options
        self._id = ""

    async def _run(self) -> None:
        """Raises APIError."""
        try:
            view = view_of(self._chat_ctx, self._tools)
            async with self._model.serving(view) as conversation:
                replying = conversation.reply(view, self._options, self._conn_options.timeout)
                async with aclosing(replying) as events:
                    async for event in events:
                        self._pass_on(event)
                if conversation.usage is not None:
                    usage = _usage(conversation.usage)
                    self._event_ch.send_nowait(lk.ChatChunk(id=self._id, usage=usage))
        except (FirstwordError, TimeoutError, ValueError) as error:
            raise api_error(error, sent=self._event_ch.output_sent) from error

    def _pass_on(self, event: TurnEvent) -> None:
        delta = None
        match event:
            case TextDelta() if event.text:
                delta = lk.ChoiceDelta(role="assistant", content=event.text)
            case ToolCall():
                arguments = json_text(event.arguments)
                made = lk.FunctionToolCall(name=event.name, arguments=arguments, call_id=event.call_id)
                delta = lk.ChoiceDelta(role="assistant", tool_calls=[made])
        if delta is not None:
            self._id = f"turn-{event.turn_id}"
            self._event_ch.send_nowait(lk.ChatChunk(id=self._id, delta=delta))


def _usage(usage: Usage) -> lk.CompletionUsage:
    return lk.CompletionUsage(
        completion_tokens=usage.completion_tokens,
        prompt_tokens=usage.prompt_tokens,
        prompt_cached_tokens=usage.cached_tokens,
        cache_read_tokens=usage.cached_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )
