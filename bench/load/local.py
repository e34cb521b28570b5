"""The way to an engine process without gRPC: the service itself in this process, records to the engine's.

What stands between a caller and the engine is the message boundary alone; the service's work on the events of a call is
done by the load generator's process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from bench.load.engine_steps import EngineStep
from bench.load.loopback import LoopbackClient
from bench.load.scripts import Script
from bench.load.service_line import ServiceLine, service_line
from bench.load.steps import StepLog
from engine import records
from service.__main__ import _open_for_business
from service.call_services import Record
from service.config import load_config
from service.engine_client import EngineClient
from service.engine_process import EngineProcess
from service.mirror import ReplySink
from service.server import Server
from service.servicer import CallServicer


class WatchedProcess(EngineProcess):
    """One that tells of each of its steps."""

    module = "bench.load.watched_worker"


class WatchedEngine(EngineClient):
    """An engine process whose steps can be watched. steps: where they are noted; None: nowhere."""

    steps: StepLog | None = None

    def _received(self, record: object) -> None:
        if not isinstance(record, EngineStep):
            super()._received(record)
        elif self.steps is not None:
            self.steps.took(record)

    def submit(self, command: records.Submit, sink: ReplySink, *more: Any) -> None:
        steps = self.steps
        if steps is None:
            super().submit(command, sink, *more)
            return
        steps.submitted(command)

        def noted(record: Record) -> None:
            steps.note(record)
            sink(record)

        super().submit(command, noted, *more)

    def release(self, session: str, turn: int, *more: Any) -> None:
        if self.steps is not None:
            self.steps.released(session, turn)
        super().release(session, turn, *more)


class LocalDriver:
    """An engine process, and calls on it. engine: to be watched, if anybody wants to."""

    def __init__(self, engine: WatchedEngine, client: LoopbackClient) -> None:
        self.engine = engine
        self.client = client

    def line(self, script: Script) -> AbstractAsyncContextManager[ServiceLine]:
        return service_line(self.client, script)


@asynccontextmanager
async def start(
    environment: Mapping[str, str], process_type: type[EngineProcess] = EngineProcess
) -> AsyncIterator[LocalDriver]:
    """An engine process under these settings. Raises ConfigError and EngineStartError."""
    config = load_config(environment)
    engine, servicer = WatchedEngine(config.engine, config.watchdog), CallServicer(config.server)
    engine.process_type = process_type
    try:
        # As ``python -m service`` puts its parts together, but for the socket: the server never starts to listen.
        await _open_for_business(config, engine, {}, servicer, Server(config.server, servicer))
        async with LoopbackClient(servicer) as client:
            yield LocalDriver(engine, client)
    finally:
        await engine.stop()
