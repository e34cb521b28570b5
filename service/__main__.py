"""``python -m service``: configuration, logs, telemetry, engine, server; then wait for a signal and leave in order."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import sys
from collections.abc import Mapping

from engine.config import EngineConfig
from engine.errors import EngineError
from service import logs
from service.admission import Admission
from service.call_services import CallServices, Resident
from service.config import ConfigError, ServiceConfig, load_config
from service.conversation import Conversation, load_chat
from service.engine_client import EngineClient, EngineState
from service.engine_process import EngineStartError
from service.prompts import pin_prompts
from service.security.files import SecurityError
from service.security.security import Security
from service.server import Server
from service.server_events import EngineRestarted
from service.servicer import CallServicer
from service.signing import Signing
from service.store import MemoryStore, Store
from service.store.opening import store_of
from service.telemetry import Telemetry, engines, stores
from service.telemetry.access import AccessTelemetry
from service.telemetry.setup import install

log = logging.getLogger("service")

STORE_CLOSING_S = 1.0
"""How long what is not written yet may take, once every call is over."""


async def run(config: ServiceConfig) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError for a taken port, EngineStartError for an unusable model,
    SecurityError for an unusable certificate, key or key set.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(logs.unhandled)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    end_telemetry = install(config.telemetry)
    access = AccessTelemetry()
    security = Security(config, access)
    if security.tls is not None:
        access.watch_certificate(lambda tls=security.tls: tls.expires_in_s)  # type: ignore[misc]
    servicer = CallServicer(config.server, security.tenant_of_stream)
    server = Server(config.server, servicer, security)
    engine = EngineClient(config.engine, config.watchdog, _Follower(server, servicer))
    others = {name: EngineClient(other, config.watchdog) for name, other in config.fallback.items()}
    await server.start()
    try:
        starting = asyncio.create_task(_open_for_business(config, engine, others, servicer, server))
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
        elif (error := starting.exception()) is not None:
            stop.cancel()
            raise error
        await stop
        log.info("stopping")
    finally:
        await server.stop()
        if servicer.services is not None:
            await servicer.services.store.stop(STORE_CLOSING_S)
        await asyncio.gather(*(process.stop() for process in (engine, *others.values())))
        await asyncio.to_thread(end_telemetry)


async def _open_for_business(
    config: ServiceConfig,
    engine: EngineClient,
    others: Mapping[str, EngineClient],
    servicer: CallServicer,
    server: Server,
) -> None:
    """Load the models and take calls."""
    ready, residents = await asyncio.gather(
        engine.start(),
        asyncio.gather(*(_reside(name, config.fallback[name], other) for name, other in others.items())),
    )
    chat = await asyncio.to_thread(load_chat, config.engine.model)
    pin_prompts(engine, chat, config.prompt, ready.max_context_tokens)
    telemetry = Telemetry(ready.model, config.telemetry)
    engines.watch(telemetry, {**others, ready.model: engine})
    store = _store(config, server, servicer, telemetry)
    servicer.admission = Admission(
        config.admission,
        lambda: engine.beat,
        ready.page_tokens,
        telemetry,
        tenants=config.tenant,
        elsewhere=store,
    )
    await store.start()
    servicer.services = CallServices(
        engine=engine,
        new_conversation=lambda opening: Conversation.opened(chat, opening),
        restored_conversation=lambda state: Conversation.restored(chat, state),
        store=store,
        signing=Signing(config.resume.secrets or (secrets.token_hex(32),), config.resume.token_ttl_s),
        telemetry=telemetry,
        config=config.call,
        model=ready.model,
        max_context_tokens=ready.max_context_tokens,
        residents={resident.name: resident for resident in residents},
        resume=config.resume,
        tenants=config.tenant,
    )
    await server.set_serving(True)
    log.info("serving", extra={"host": config.server.host, "port": server.port, "model": ready.model})


def _store(config: ServiceConfig, server: Server, servicer: CallServicer, telemetry: Telemetry) -> Store:
    """What all servers of the service share, where one is configured."""
    if not config.store.url:
        return MemoryStore()
    address = config.server.advertise
    if not address and config.server.host not in ("0.0.0.0", "[::]"):
        address = f"{config.server.host}:{server.port}"
    store = store_of(config, address, lambda: servicer.load, lambda: servicer.tenants)
    stores.watch(telemetry, store.writer)
    return store


async def _reside(name: str, config: EngineConfig, engine: EngineClient) -> Resident:
    """Load a model that answers where the calls' own is late."""
    ready = await engine.start()
    chat = await asyncio.to_thread(load_chat, config.model)
    return Resident(name, engine, chat, ready.max_context_tokens)


class _Follower:
    """Health, and a notice to every call, follow the state of the engine."""

    def __init__(self, server: Server, servicer: CallServicer) -> None:
        self._server = server
        self._servicer = servicer
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, state: EngineState) -> None:
        if self._servicer.services is None:
            return
        serving = state is EngineState.SERVING
        if serving:
            self._servicer.notify(EngineRestarted(self._servicer.services.model))
        task = asyncio.get_running_loop().create_task(self._server.set_serving(serving))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def main() -> int:
    """The exit status: 0 after an orderly end, 1 when the service could not start, 2 for a bad configuration."""
    try:
        config = load_config()
    except ConfigError as error:
        print(f"configuration: {error}", file=sys.stderr)
        return 2
    logs.configure(config.log.level, config.log.format, content=config.telemetry.content)
    try:
        asyncio.run(run(config))
    except (OSError, EngineError, EngineStartError, SecurityError) as error:
        log.error("could not start", extra={"cause": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
