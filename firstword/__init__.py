"""The client of Firstword, the language side of a voice agent.

async with Client("localhost:50051") as client, client.call(system="You answer the phone.") as call:
    await call.partial("could you")
    async for event in await call.final("could you tell me when you open"):
        if isinstance(event, TextDelta):
            print(event.text, end="")
"""

from firstword.call import Call
from firstword.client import Client
from firstword.credentials import Tls
from firstword.errors import CLOSED, CallError, CallFailed, FirstwordError, ServiceBusy
from firstword.events import (
    AnswerSource,
    Drafting,
    DraftingPhase,
    EndReason,
    Generated,
    HistoryCause,
    HistoryChanged,
    Interrupted,
    Notice,
    Opened,
    TextDelta,
    Timings,
    TurnEvent,
    TurnReport,
    Usage,
    Waiting,
)
from firstword.turn import Turn
from firstword.types import (
    AnswerAhead,
    ContextPolicy,
    Fallback,
    Item,
    Limits,
    Message,
    Role,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
    ToolHandler,
    ToolResult,
    TurnOptions,
    WordTiming,
)

__all__ = [
    "CLOSED",
    "AnswerAhead",
    "AnswerSource",
    "Call",
    "CallError",
    "CallFailed",
    "Client",
    "ContextPolicy",
    "Drafting",
    "DraftingPhase",
    "EndReason",
    "Fallback",
    "FirstwordError",
    "Generated",
    "HistoryCause",
    "HistoryChanged",
    "Interrupted",
    "Item",
    "Limits",
    "Message",
    "Notice",
    "Opened",
    "Role",
    "Sampling",
    "ServiceBusy",
    "TextDelta",
    "Timings",
    "Tls",
    "Tool",
    "ToolCall",
    "ToolChoice",
    "ToolHandler",
    "ToolResult",
    "Turn",
    "TurnEvent",
    "TurnOptions",
    "TurnReport",
    "Usage",
    "Waiting",
    "WordTiming",
]
