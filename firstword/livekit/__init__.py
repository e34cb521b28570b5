"""Firstword as the language model of a LiveKit agent. Needs the extra: ``pip install 'firstword[livekit]'``.

model = firstword.livekit.LLM("localhost:50051")
session = AgentSession(llm=model, stt=..., tts=...)
model.attach(session)
"""

from firstword.livekit.llm import LLM

__all__ = ["LLM"]
