"""The gRPC server: TLS, health, reflection, limits and an orderly end. Knows calls only as a set to drain."""

from __future__ import annotations

import logging

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from firstword.v1 import call_service_pb2, call_service_pb2_grpc
from service.config import ServerConfig
from service.security.security import Security
from service.servicer import CallServicer

log = logging.getLogger(__name__)

CLOSING_S = 2.0
"""How long streams may take to carry out what they end with, once every call is over."""

LEAVING_S = 5.0
"""What is left of the grace for the end of the process, when the calls have ended."""

SERVICE_NAME: str = call_service_pb2.DESCRIPTOR.services_by_name["CallService"].full_name

LIVENESS = "liveness"
"""Health name that says SERVING as long as the event loop turns: also while models load, while an engine is replaced
(its calls wait for it) and while calls drain. Who restarts a process that fails this ends no call that was not lost."""


class Server:
    """One listening socket with the call service on it, not serving until told so. security: None for plain text, and
    everybody is let in.

    health_port: of the second one, which answers for health alone; 0 where there is none.
    """

    def __init__(self, config: ServerConfig, servicer: CallServicer, security: Security | None = None) -> None:
        self._config = config
        self._servicer = servicer
        self._security = security
        self._health = health.aio.HealthServicer()
        guard = None if security is None else security.guard
        self._server = grpc.aio.server(interceptors=[guard] if guard else [], options=_options(config))
        self._probed: grpc.aio.Server | None = None
        self._stopping = False
        self.port = self.health_port = 0

    async def start(self) -> int:
        """Listen; returns the port. Health says NOT_SERVING until ``set_serving``. Raises OSError for a taken port."""
        call_service_pb2_grpc.add_CallServiceServicer_to_server(self._servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if self._config.reflection:
            names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        await self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self.set_serving(False)
        credentials = None if self._security is None else self._security.credentials
        self.port = _bind(self._server, self._config.address, credentials)
        if self._config.health_port is not None:
            self._probed = grpc.aio.server(options=_options(self._config))
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._probed)
            self.health_port = _bind(self._probed, self._config.health_address, None)
            await self._probed.start()
        if self._security is not None:
            self._security.start()
        await self._server.start()
        about = {"health_port": self.health_port} if self.health_port else {}
        log.info("listening", extra={"host": self._config.host, "port": self.port, "tls": bool(credentials), **about})
        return self.port

    async def set_serving(self, serving: bool) -> None:
        """Say for the whole server and the call service whether new calls are welcome; once it stops, they are not."""
        welcome = serving and not self._stopping
        status = health_pb2.HealthCheckResponse.SERVING if welcome else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in (health.OVERALL_HEALTH, SERVICE_NAME):
            await self._health.set(name, status)

    async def stop(self) -> None:
        """Refuse new calls, tell the open ones, give them the grace, then end what is left."""
        self._stopping = True
        await self.set_serving(False)
        await self._servicer.drain(max(self._config.stop_grace_s - LEAVING_S, self._config.stop_grace_s / 2))
        await self._server.stop(CLOSING_S)
        if self._probed is not None:  # whoever probes is answered to the end
            await self._probed.stop(None)
        if self._security is not None:
            await self._security.stop()


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    """Listen at an address, over TLS where there are credentials; returns the port. Raises OSError for a taken one."""
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from None


def _options(config: ServerConfig) -> list[tuple[str, int]]:
    """A call may be silent for minutes while somebody listens, so clients may ping without data.

    A connection that has aged is given no end (``max_connection_age_grace_ms`` is left at forever): calls outlive it.
    """
    age = [("grpc.max_connection_age_ms", round(config.max_connection_age_s * 1000))]
    return [
        *(age if config.max_connection_age_s else ()),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.keepalive_time_ms", config.keepalive_time_ms),
        ("grpc.keepalive_timeout_ms", config.keepalive_timeout_ms),
        ("grpc.http2.ping_timeout_ms", config.keepalive_timeout_ms),  # without it nothing ends (grpc pull 39239)
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", config.min_ping_interval_ms),
        ("grpc.so_reuseport", 0),
    ]
