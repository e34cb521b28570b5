"""Servers in this process: the real socket, servicer, calls and store, on a real engine, and no process of their own.

They start in no time and die as if killed: what was not written or sent is lost. What a process alone can do, such as
being frozen, is tried in ``tests/e2e``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from firstword import Client
from service.admission import Admission
from service.call_services import CallServices
from service.config import ServiceConfig, StoreConfig
from service.conversation import Conversation
from service.security.security import Security
from service.server import Server
from service.servicer import CallServicer
from service.signing import Signing
from service.store import MemoryStore, RedisStore, Store
from service.store.opening import store_of
from service.telemetry import Telemetry
from service.telemetry.access import AccessTelemetry
from tests.e2e.lines import Lines
from tests.e2e.pods import SECRET
from tests.service.calls import MODEL, LocalEngine, chat, target


class LocalPod:
    """One server behind lines of its own, whose address it keeps. store_url: empty for none. advertise: None for
    these lines. sections: of its configuration, or config: all of it. new_engine: makes what it serves.
    """

    def __init__(
        self,
        store_url: str = "",
        *,
        lease_s: float = 30.0,
        trust_after_s: float = 0.1,
        lines: Lines | None = None,
        advertise: str | None = None,
        sections: Mapping[str, Any] | None = None,
        config: ServiceConfig | None = None,
        new_engine: Callable[[], LocalEngine] = LocalEngine,
    ) -> None:
        own = dict(sections or {})
        server = {"port": 0, "stop_grace_s": 60.0, **own.get("server", {})}
        resume = {"keys": SECRET, **own.get("resume", {})}
        self._config = config or ServiceConfig.model_validate({**own, "server": server, "resume": resume})
        self.lines = lines or Lines()
        self._advertise = advertise
        self._new_engine = new_engine
        self._store_config = (
            StoreConfig(
                url=store_url,
                timeout_s=5.0,
                lease_s=lease_s,
                trust_after_s=trust_after_s,
                name_key=self._config.store.name_key,
            )
            if store_url
            else StoreConfig()
        )
        self._listening: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.services: CallServices | None = None
        self.server: Server | None = None

    @property
    def address(self) -> str:
        return self.lines.address

    @property
    def sessions(self) -> set[str]:
        """Calls that it holds."""
        return {key.session for key in self.services.live} if self.services is not None else set()

    async def start(self) -> None:
        if not self.lines.port:
            self._listening = await self.lines.listen()
        self.engine = self._new_engine()
        config = self._config
        self.security = security = Security(config, AccessTelemetry())
        self._servicer = servicer = CallServicer(config.server, security.tenant_of_stream)
        self.server = Server(config.server, servicer, security)
        self.store = self._store(servicer)
        await self.store.start()
        telemetry = Telemetry(MODEL)
        servicer.admission = Admission(
            config.admission,
            lambda: None,
            16,
            telemetry,
            tenants=config.tenant,
            elsewhere=self.store,
        )
        servicer.services = self.services = CallServices(
            engine=self.engine,
            new_conversation=lambda opening: Conversation.opened(chat(), opening),
            restored_conversation=lambda state: Conversation.restored(chat(), state),
            store=self.store,
            signing=Signing(config.resume.secrets, config.resume.token_ttl_s),
            telemetry=telemetry,
            config=config.call,
            model=MODEL,
            max_context_tokens=config.engine.max_context_tokens or target().max_context_tokens,
            resume=config.resume,
            tenants=config.tenant,
        )
        await self.server.start()
        await self.server.set_serving(True)
        self.lines.lead_to(self.server.port)
        self._tasks = [asyncio.create_task(self._work())]

    async def kill(self) -> None:
        """Nothing more of it is heard, read or written."""
        self.lines.lead_to(0)
        self.lines.cut_all()
        await self._stop_working()
        assert self.server is not None
        await self.server._server.stop(0)
        await self.security.stop()
        for session in list(self.engine._sessions):
            self.engine.close(session)
        self.engine.run()

    async def freeze(self) -> None:
        """It works no more, hears nothing and says nothing; its sockets stay open."""
        self.lines.silence_all()
        await self._stop_working()

    async def thaw(self) -> None:
        """It goes on as if no time had passed."""
        await self.store.start()
        self._tasks = [asyncio.create_task(self._work())]
        self.lines.pass_all()

    async def _stop_working(self) -> None:
        """The engine and what is written behind."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if isinstance(self.store, RedisStore):
            await self.store.halt()

    async def leave(self) -> None:
        """As on SIGTERM."""
        assert self.server is not None
        await self.server.stop()
        await self.store.stop(1.0)
        await self.kill()

    async def end(self) -> None:
        await self.kill()
        await self.store.stop(0.0)
        if self._listening is not None:
            self._listening.close()

    def _store(self, servicer: CallServicer) -> Store:
        if not self._store_config.url:
            return MemoryStore()
        config = ServiceConfig(store=self._store_config, resume=self._config.resume)
        address = self.address if self._advertise is None else self._advertise
        return store_of(config, address, lambda: servicer.load, lambda: servicer.tenants)

    async def _work(self) -> None:
        """The engine's steps, between which the sockets are served."""
        while True:
            worked = self.engine.step()
            await asyncio.sleep(0 if worked else 0.001)


@asynccontextmanager
async def local_pods(count: int, store_url: str = "", **options: Any) -> AsyncIterator[list[LocalPod]]:
    pods = [LocalPod(store_url, **options) for _ in range(count)]
    try:
        for pod in pods:
            await pod.start()
        yield pods
    finally:
        for pod in pods:
            with contextlib.suppress(AssertionError):
                await pod.end()


def client_of(pods: Sequence[LocalPod], **given: Any) -> Client:
    """A client of all of them, as behind one name."""
    own = (
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.min_reconnect_backoff_ms", 500),
        ("grpc.http2.ping_timeout_ms", 10_000),  # a machine that runs tests may be silent for a while, and is not gone
    )
    return Client("ipv4:" + ",".join(pod.address for pod in pods), options=own, **given)
