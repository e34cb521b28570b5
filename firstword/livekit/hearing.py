"""What a session hears while its caller speaks. LiveKit tells its language model nothing of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from livekit.agents import llm as lk

from firstword.errors import FirstwordError
from firstword.livekit.context import View, view_of
from firstword.livekit.conversation import Conversation

if TYPE_CHECKING:
    from livekit.agents import (
        AgentSession,
        AgentStateChangedEvent,
        ConversationItemAddedEvent,
        UserInputTranscribedEvent,
        UserStateChangedEvent,
    )
    from livekit.agents.voice.events import EventTypes

log = logging.getLogger(__name__)


class Hearing:
    """Listens to a session until it closes.

    Nothing here may hold up or fail a reply: what cannot be prefilled ahead is prefilled at the turn.
    """

    def __init__(self, session: AgentSession[Any], conversation: Conversation) -> None:
        self._session = session
        self._conversation = conversation
        self._finals: list[str] = []
        """Transcripts that are final, of the turn that is not complete."""
        self._hypothesis = ""
        self._speaks = False
        self._prepared = False
        self._something = asyncio.Event()
        self._listeners: dict[EventTypes, Callable[[Any], None]] = {
            "user_input_transcribed": self._on_transcribed,
            "user_state_changed": self._on_user_state,
            "agent_state_changed": self._on_agent_state,
            "conversation_item_added": self._on_item,
            "close": self._on_close,
        }
        for event, listener in self._listeners.items():
            session.on(event, listener)
        self._task = asyncio.create_task(self._pass_on())

    async def aclose(self) -> None:
        """Idempotent."""
        self._on_close()
        await asyncio.wait({self._task})

    def _on_close(self, _event: object = None) -> None:
        for event, listener in self._listeners.items():
            self._session.off(event, listener)
        self._listeners = {}
        self._task.cancel()

    def _on_transcribed(self, event: UserInputTranscribedEvent) -> None:
        self._hypothesis = " ".join(filter(None, (*self._finals, event.transcript.strip())))
        if event.is_final:
            self._finals.append(event.transcript.strip())
        self._something.set()

    def _on_user_state(self, event: UserStateChangedEvent) -> None:
        if event.new_state == "speaking":
            self._speaks = True
            self._something.set()

    def _on_agent_state(self, event: AgentStateChangedEvent) -> None:
        self._something.set()

    def _on_item(self, event: ConversationItemAddedEvent) -> None:
        if isinstance(event.item, lk.ChatMessage) and event.item.role == "user":
            self._finals.clear()
            self._hypothesis = ""

    async def _pass_on(self) -> None:
        """The newest of what was heard, whenever there is something."""
        while True:
            await self._something.wait()
            self._something.clear()
            try:
                await self._tell()
            except (FirstwordError, ValueError) as error:
                log.debug("nothing is prefilled ahead: %s", error)

    async def _tell(self) -> None:
        state = self._session.agent_state
        if not self._prepared and state != "initializing":
            self._prepared = True
            await self._conversation.prepare(self._view())
        text, self._hypothesis = self._hypothesis, ""
        started, self._speaks = self._speaks, False
        call = self._conversation.call
        if call is None:
            return
        if started:
            await call.speech_started()
        if not text or self._conversation.answered(text):
            return  # the reply to it is there, or being made: LiveKit may take it
        if state == "listening":  # else the agent's context has nothing yet of what it is saying
            call = await self._conversation.follow(self._view().items)
        await call.partial(text)

    def _view(self) -> View:
        """What the next turn will be asked behind."""
        agent = self._session.current_agent
        return view_of(agent.chat_ctx, [*self._session.tools, *agent.tools])
