"""The servers that are fuzzed: the real socket, servicer, calls and engine, of one process, on a model that costs next
to nothing.

The model is a Llama of one layer with random weights and the embedded model's tokenizer and chat template. What it says
makes no sense, which is what is wanted: halves of characters, every token, seldom an end.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path

from engine.config import EngineConfig
from engine.host import EngineHost
from engine.load import load_host
from service.config import EMBEDDED_MODEL, AdmissionConfig, CallConfig, ResumeConfig, ServerConfig, ServiceConfig
from tests.e2e.pods import SECRET
from tests.engine import checkpoints
from tests.fuzz.damage import LARGEST
from tests.service.calls import LocalEngine
from tests.service.pods import LocalPod

CONTEXT = 384
KEEP_S = 0.3


@cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    """Of the model; gone when the process is."""
    directory = tempfile.TemporaryDirectory(prefix="firstword-fuzz-")
    out = Path(directory.name)
    tiny = {
        "vocab_size": 2048,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "initializer_range": 0.3,
    }
    checkpoints.write("llama-tied", out, **tiny)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(EMBEDDED_MODEL / name, out)
    return directory


def config() -> ServiceConfig:
    """Limits so low that they are met."""
    engine = EngineConfig(
        _directory().name,
        drafter="suffix",
        max_context_tokens=CONTEXT,
        pool_tokens=8192,
        host_cache_bytes=1 << 20,
        draft_nodes=4,
    )
    return ServiceConfig(
        server=ServerConfig(port=0, max_message_bytes=LARGEST, hold_at_events=8, max_queued_events=512, unread_s=5.0),
        admission=AdmissionConfig(max_calls=24, reserve_tokens=64, max_speech_load=None),
        call=CallConfig(max_reply_tokens=12, max_reply_tokens_limit=64, max_input_chars=2000, replay_events=32),
        resume=ResumeConfig(keys=SECRET, keep_s=KEEP_S),
        engine=engine,
    )


def _new_host(engine: EngineConfig) -> EngineHost:
    return load_host(engine)[0]


class FuzzedPod(LocalPod):
    """on_crash: told where the engine failed, which costs the real service an engine process each time."""

    def __init__(self, on_crash: Callable[[str], None]) -> None:
        made = config()
        super().__init__(config=made, new_engine=lambda: LocalEngine(new_host=partial(_new_host, made.engine)))
        self._on_crash = on_crash

    async def _work(self) -> None:
        while True:
            try:
                worked = self.engine.step()
            except Exception:
                self._on_crash(traceback.format_exc())
                self.engine.die()
                worked = True
            await asyncio.sleep(0 if worked else 0.001)

    def left_behind(self) -> str:
        """What there is of calls, when there should be none."""
        assert self.services is not None and self._servicer.admission is not None
        beat = self.engine.beat
        found = {
            "live calls": len(self.services.live),
            "seats": self._servicer.admission.seats,
            "streams": len(self._servicer._streams),
            "engine sessions": beat.sessions,
            "mirrors": len(self.engine._sessions),
            "pages": beat.pages_in_use - beat.kept_pages,
            "pages in host memory": beat.host_bytes,
        }
        return ", ".join(f"{count} {what}" for what, count in found.items() if count)


@asynccontextmanager
async def fuzzed_pods(count: int, on_crash: Callable[[str], None]) -> AsyncIterator[list[FuzzedPod]]:
    """So many, which sign with the same key: a call can be resumed at any."""
    pods = [FuzzedPod(on_crash) for _ in range(count)]
    try:
        for pod in pods:
            await pod.start()
        yield pods
    finally:
        for pod in pods:
            await pod.end()
