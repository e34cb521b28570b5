"""A recogniser that hears what a test says, and sound that has nothing in it: LiveKit's own pipeline does the rest."""

from __future__ import annotations

import asyncio

from livekit import rtc
from livekit.agents import DEFAULT_API_CONNECT_OPTIONS, APIConnectOptions, LanguageCode, NotGivenOr, stt
from livekit.agents.types import NOT_GIVEN
from livekit.agents.utils import AudioBuffer
from livekit.agents.voice import io

Kind = stt.SpeechEventType


class Silence(io.AudioInput):
    """A microphone that nobody speaks into."""

    def __init__(self) -> None:
        super().__init__(label="silence")

    async def __anext__(self) -> rtc.AudioFrame:
        await asyncio.sleep(0.05)
        return rtc.AudioFrame(bytes(1600), 16000, 1, 800)


class Recogniser(stt.STT):
    def __init__(self) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=True))
        self.heard: asyncio.Queue[stt.SpeechEvent] = asyncio.Queue()

    def hear(self, kind: Kind, text: str = "") -> None:
        data = [stt.SpeechData(LanguageCode("en"), text, confidence=1.0)] if text else []
        self.heard.put_nowait(stt.SpeechEvent(kind, alternatives=data))

    async def _recognize_impl(
        self, buffer: AudioBuffer, *, language: NotGivenOr[str] = NOT_GIVEN, conn_options: APIConnectOptions
    ) -> stt.SpeechEvent:
        raise NotImplementedError("it streams")

    def stream(
        self, *, language: NotGivenOr[str] = NOT_GIVEN, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> stt.RecognizeStream:
        return _Stream(stt=self, conn_options=conn_options)


class _Stream(stt.RecognizeStream):
    async def _run(self) -> None:
        assert isinstance(self._stt, Recogniser)
        while True:
            self._event_ch.send_nowait(await self._stt.heard.get())
