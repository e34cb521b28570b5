"""The service's configuration, read once at start from a TOML file and the environment, and frozen.

The only reader of ``os.environ``. ``FIRSTWORD_SECTION__KEY`` in the environment overrides ``key`` of ``[section]`` in
the file; a key that neither knows is an error, so that a misspelt setting never goes unnoticed. The standard
``OTEL_*`` variables are left to OpenTelemetry, but for the choice of exporters.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import ipaddress
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from engine.config import EngineConfig, split_drafters
from service.section import Section, separated
from service.security.identity import TENANT_NAME
from service.security.settings import AuthConfig, JwtConfig, TenantConfig, TlsConfig

PREFIX = "FIRSTWORD_"
FILE_VARIABLE = "FIRSTWORD_CONFIG"
CLIENT_VARIABLES = frozenset({"FIRSTWORD_API_KEY", "FIRSTWORD_TOKEN"})
"""Of ``firstword talk``, and none of the service's business."""
DEFAULT_FILE = "firstword.toml"
EMBEDDED_MODEL = Path(__file__).resolve().parent.parent / "models" / "receptionist"
"""The model that comes with the repository. Its EAGLE-3 head lies in the directory ``eagle3`` inside."""


class ConfigError(Exception):
    """The configuration cannot be used. The message names each setting and what is wrong with it."""


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


class ServerConfig(Section):
    """The socket and how long things may take on it.

    port: 0 lets the system choose. advertise: address at which clients reach this server and no other one of the
    service, with its port; empty: host and port, unless it listens everywhere. An IPv6 address is put in brackets where
    it has none. stop_grace_s: time from SIGTERM to the end of the
    process; calls have all of it but what an orderly end takes. keepalive_time_ms: silence after which the server
    pings; min_ping_interval_ms: how often a silent client may ping without being sent away.
    max_connection_age_s: after which a connection takes no new calls, and its client looks for addresses again; those
    on it go on. 0: never.
    hold_at_events: unsent server events from which on the call's replies are held until its client has caught up. A
    client that is further behind than max_queued_events, or takes nothing for unread_s, loses its call.
    health_port: a second port, in plain text, that answers for health alone: for probes that know no TLS. None: there
    is none; 0 lets the system choose. first_event_s: how long a stream may be open before it says what it wants.
    heartbeat_s: silence on a stream after which its client is told that the line is up. 0: never.
    reload_s: how often files of certificates, keys and key sets are looked at.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=50051, ge=0, le=65535)
    advertise: str = ""
    reflection: bool = True
    max_message_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    keepalive_time_ms: int = Field(default=60_000, ge=1000)
    keepalive_timeout_ms: int = Field(default=20_000, ge=1000)
    min_ping_interval_ms: int = Field(default=1_000, ge=0)
    max_connection_age_s: float = Field(default=0.0, ge=0, le=86_400)
    stop_grace_s: float = Field(default=30.0, ge=0)
    hold_at_events: int = Field(default=64, ge=4)
    max_queued_events: int = Field(default=4096, ge=16)
    unread_s: float = Field(default=30.0, gt=0)
    health_port: int | None = Field(default=None, ge=0, le=65535)
    first_event_s: float = Field(default=30.0, gt=0)
    heartbeat_s: float = Field(default=5.0, ge=0, le=3600)
    reload_s: float = Field(default=10.0, gt=0)

    @field_validator("host", mode="after")
    @classmethod
    def _listens_at(cls, host: str) -> str:
        return f"[{host}]" if _is_ipv6(host) else host

    @field_validator("advertise", mode="after")
    @classmethod
    def _can_be_dialled(cls, address: str) -> str:
        """Where it is put together of a pod's IP and a port, nobody knows of which kind the IP will be. Without the
        brackets gRPC takes all of it for an address, and dials its own port.
        """
        host, _, port = address.rpartition(":")
        if _is_ipv6(host):
            return f"[{host}]:{port}"
        if _is_ipv6(address.strip("[]")):
            raise ValueError("has no port")
        return address

    @model_validator(mode="after")
    def _held_before_lost(self) -> Self:
        if self.hold_at_events >= self.max_queued_events:
            raise ValueError("hold_at_events must be below max_queued_events")
        return self

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def health_address(self) -> str:
        return f"{self.host}:{self.health_port}"


class AdmissionConfig(Section):
    """How many calls are taken. Whoever is above it is refused when the call opens; nobody loses a call by it.

    max_opens_per_minute_per_tenant: new calls of one tenant, as many at once; None: no limit.
    fair_share_from: from this part of all calls, or pages, on a tenant is refused what is above its equal share.
    reserve_tokens: that a call will add to its context, for which pages are kept free. overcommit: pages that calls are
    promised, over those that there are. max_backlog_ms: of work that waits in the engine; None: no limit.
    max_speech_load: part of its time that the engine may need for what is being spoken; what is over is for prompts and
    first words. None: no limit.
    """

    max_calls: int = Field(default=256, ge=1)
    max_calls_per_tenant: int | None = Field(default=None, ge=1)
    max_opens_per_minute_per_tenant: int | None = Field(default=None, ge=1)
    fair_share_from: float = Field(default=0.8, ge=0, le=1)
    reserve_tokens: int = Field(default=512, ge=0)
    overcommit: float = Field(default=1.0, gt=0)
    max_backlog_ms: int | None = Field(default=2000, ge=1)
    max_speech_load: float | None = Field(default=0.5, gt=0)


MIN_SECRET_CHARACTERS = 16


class StoreConfig(Section):
    """Redis, for what must outlive a pod. url: of Redis or Valkey; empty: nothing outlives this process but what
    clients hold.

    timeout_s: for an answer of it. lease_s: silence after which a pod counts as gone. retention_s: how long a call is
    kept after it was last written. trust_after_s: how long what Redis has acknowledged may still be lost, by a failover
    or a crash; clients hold it for so long. name_key: a secret that names in the store are made with, so that they tell
    nothing; it does not rotate, and is the same for all pods; empty: the last of ``resume.keys``. encryption_keys:
    base64 of 32 random bytes each, separated by commas: the first one encrypts; empty: transcripts are not encrypted.
    """

    url: str = Field(default="", repr=False)
    timeout_s: float = Field(default=0.5, gt=0)
    lease_s: float = Field(default=6.0, gt=0)
    retention_s: float = Field(default=3600.0, gt=0)
    trust_after_s: float = Field(default=5.0, ge=0)
    name_key: str = Field(default="", repr=False)
    encryption_keys: str = Field(default="", repr=False)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(filter(None, map(str.strip, self.encryption_keys.split(","))))

    @field_validator("url", mode="after")
    @classmethod
    def _usable_url(cls, value: str) -> str:
        if value:
            from service.store import url  # loads the store's client, which a service without a store has no use for

            url.check(value)
        return value

    @field_validator("name_key", mode="after")
    @classmethod
    def _long_enough(cls, value: str) -> str:
        if value and len(value) < MIN_SECRET_CHARACTERS:
            raise ValueError(f"a key has at least {MIN_SECRET_CHARACTERS} characters")
        return value

    @field_validator("encryption_keys", mode="after")
    @classmethod
    def _usable_keys(cls, value: str) -> str:
        for key in filter(None, map(str.strip, value.split(","))):
            try:
                raw = base64.b64decode(key, validate=True)
            except binascii.Error:
                raw = b""
            if len(raw) != 32:
                raise ValueError("each key is 32 random bytes in base64")
        return value


class ResumeConfig(Section):
    """How a call outlives its stream. keys: secrets that sign what clients hold, the same for all pods, separated by
    commas: the first one signs, each is believed; empty: one that nobody else has, so that calls can be resumed at this
    process alone.

    token_ttl_s: how long a resume token can be used; a new one comes in time. keep_s: how long a call stays warm whose
    stream broke.
    """

    keys: str = Field(default="", repr=False)
    token_ttl_s: float = Field(default=3600.0, gt=0)
    keep_s: float = Field(default=30.0, ge=0)

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(filter(None, map(str.strip, self.keys.split(","))))

    @field_validator("keys", mode="after")
    @classmethod
    def _long_enough(cls, value: str) -> str:
        if any(len(key) < MIN_SECRET_CHARACTERS for key in filter(None, map(str.strip, value.split(",")))):
            raise ValueError(f"a key has at least {MIN_SECRET_CHARACTERS} characters")
        return value


class CallConfig(Section):
    """What a call gets when its open event says nothing, and what it can have at most.

    replay_events: server events kept for a client that reconnects. nearly_full: share of the context from which a
    notice is sent once; context_full: what happens when the next turn does not fit. unstable_partial_ms: how long the
    end of a partial that may still be revised is not computed. max_held_tokens: of a reply made ahead of the final;
    max_held_ms: how long it waits for that. max_events_per_s: of a client, twice as many at once; one that sends more
    is read no faster.
    """

    max_reply_tokens: int = Field(default=256, ge=1)
    max_reply_tokens_limit: int = Field(default=4096, ge=1)
    max_tool_calls_per_turn: int = Field(default=16, ge=0)
    max_tool_calls_per_call: int | None = Field(default=None, ge=0)
    max_call_ms: int | None = Field(default=None, ge=1)
    max_idle_ms: int | None = Field(default=None, ge=1)
    tool_timeout_ms: int | None = Field(default=None, ge=1)
    max_input_chars: int = Field(default=16_384, ge=1)
    replay_events: int = Field(default=512, ge=0)
    context_full: Literal["refuse", "drop_oldest", "summarise"] = "refuse"
    nearly_full: float = Field(default=0.9, gt=0, le=1)
    unstable_partial_ms: int = Field(default=0, ge=0)
    max_held_tokens: int = Field(default=64, ge=1)
    max_held_ms: int = Field(default=3000, ge=1)
    max_events_per_s: int = Field(default=200, ge=1)

    @model_validator(mode="after")
    def _default_within_limit(self) -> Self:
        if self.max_reply_tokens > self.max_reply_tokens_limit:
            raise ValueError("max_reply_tokens must not be above max_reply_tokens_limit")
        return self


class WatchdogConfig(Section):
    """When an engine process counts as hung, and how it is started again.

    silence_s: no sign of life for so long, although asked; must be above the longest single step of the model.
    backoff_s: wait before the second restart in a row, doubled each time up to backoff_max_s.
    """

    silence_s: float = Field(default=10.0, gt=0)
    backoff_s: float = Field(default=0.5, ge=0)
    backoff_max_s: float = Field(default=30.0, ge=0)


class PromptConfig(Section):
    """Instructions and tools that calls begin with, computed once at start and kept.

    tools_file: a JSON list of objects with name, description and parameters (a JSON Schema). tenant: whose calls begin
    so; public: calls of every tenant may, who can tell from their first token's time that it was there.
    """

    system: str = ""
    tools_file: Path | None = None
    tenant: str = ""
    public: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.system and self.tools_file is None:
            raise ValueError("has neither system nor tools_file")
        if self.public and self.tenant:
            raise ValueError("is either public or a tenant's")
        return self


class LogConfig(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "text"] = "json"


class TelemetryConfig(Section):
    """Which exporters run, as many as are named. Their endpoints and headers come from the standard
    ``OTEL_EXPORTER_*`` variables.

    Prometheus is served at ``prometheus_host:prometheus_port``; port 0 lets the system choose. turn_traces: what a turn
    belongs to whose event names no trace: its call's, or one of its own. content: whether spans hold what was said.
    """

    traces: tuple[Literal["console", "otlp"], ...] = ()
    metrics: tuple[Literal["console", "otlp", "prometheus"], ...] = ()
    otlp_protocol: Literal["grpc", "http/protobuf"] = "grpc"
    prometheus_host: str = "127.0.0.1"
    prometheus_port: int = Field(default=9464, ge=0, le=65535)
    turn_traces: Literal["call", "own"] = "call"
    content: bool = False

    @field_validator("traces", "metrics", mode="before")
    @classmethod
    def _separate(cls, value: object) -> object:
        """As ``OTEL_METRICS_EXPORTER`` is written."""
        return separated(value)


OTEL_VARIABLES: Mapping[str, str] = {
    "OTEL_TRACES_EXPORTER": "traces",
    "OTEL_METRICS_EXPORTER": "metrics",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "otlp_protocol",
    "OTEL_EXPORTER_PROMETHEUS_HOST": "prometheus_host",
    "OTEL_EXPORTER_PROMETHEUS_PORT": "prometheus_port",
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "content",
}
"""Standard variables that stand for keys of ``[telemetry]``, unless the file or ``FIRSTWORD_*`` sets those."""


class ServiceConfig(Section):
    """Everything the service is started with.

    fallback: models that are resident beside the engine's, by the names that clients use in ``Open.fallbacks``. Each is
    a directory or a table with the keys of ``[engine]``. prompt: what is computed before the first call comes. tenant:
    limits of single tenants, by their names.
    """

    server: ServerConfig = ServerConfig()
    tls: TlsConfig = TlsConfig()
    auth: AuthConfig = AuthConfig()
    jwt: JwtConfig = JwtConfig()
    tenant: dict[str, TenantConfig] = Field(default_factory=dict)
    admission: AdmissionConfig = AdmissionConfig()
    call: CallConfig = CallConfig()
    store: StoreConfig = StoreConfig()
    resume: ResumeConfig = ResumeConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    log: LogConfig = LogConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    engine: EngineConfig = EngineConfig(model=str(EMBEDDED_MODEL))
    fallback: dict[str, EngineConfig] = Field(default_factory=dict)
    prompt: tuple[PromptConfig, ...] = ()

    @model_validator(mode="after")
    def _one_key_for_all(self) -> Self:
        if self.store.url and not self.resume.secrets:
            raise ValueError("resume.keys must be set where store.url is: all servers of one store sign with the same")
        return self

    @field_validator("tenant", mode="after")
    @classmethod
    def _names_of_tenants(cls, tenants: dict[str, TenantConfig]) -> dict[str, TenantConfig]:
        for name in tenants:
            if TENANT_NAME.fullmatch(name) is None:
                raise ValueError(f"{name!r} can be no tenant's name: 1 to 128 characters of ASCII without blanks")
        return tenants

    @field_validator("engine", mode="before")
    @classmethod
    def _known_engine_keys(cls, value: object) -> object:
        """A frozen dataclass of another layer: pydantic would drop what it does not know."""
        if not isinstance(value, Mapping):
            return value
        unknown = sorted(set(value) - {field.name for field in dataclasses.fields(EngineConfig)})
        if unknown:
            raise ValueError(f"unknown key {', '.join(unknown)}")
        known: dict[str, object] = {"model": str(EMBEDDED_MODEL), **value}
        nodes, layers = known.get("draft_nodes"), known.get("draft_layer_ids")
        if isinstance(nodes, str) and nodes.isdecimal():
            known["draft_nodes"] = int(nodes)
        if isinstance(layers, str):
            known["draft_layer_ids"] = tuple(layers.split(","))
        return known

    @field_validator("fallback", mode="before")
    @classmethod
    def _known_fallback_keys(cls, value: object) -> object:
        """The directory alone is enough; a model of its own has all that the engine's section has."""
        if not isinstance(value, Mapping):
            return value
        found = {}
        for name, given in value.items():
            keys = {"model": given} if isinstance(given, str) else given
            if isinstance(keys, Mapping) and "model" not in keys:
                raise ValueError(f"{name} has no model")
            found[name] = cls._known_engine_keys(keys)
        return found

    @field_validator("fallback", mode="after")
    @classmethod
    def _absolute_fallback_directories(cls, fallback: dict[str, EngineConfig]) -> dict[str, EngineConfig]:
        return {name: cls._absolute_directories(engine) for name, engine in fallback.items()}

    @field_validator("engine", mode="after")
    @classmethod
    def _absolute_directories(cls, engine: EngineConfig) -> EngineConfig:
        """Paths as the user meant them, from where the service was started; with the drafter that lies inside."""
        model = Path(engine.model).expanduser().resolve()
        inside = model / "eagle3"
        drafter = engine.drafter
        if drafter is None:
            # With a head the two together were faster than either, and without one the two that need no training. Where
            # steps are captured, whole cycles are: of a head alone.
            head = f"eagle3:{inside}" if engine.captures else f"suffix+eagle3:{inside}"
            drafter = head if (inside / "config.json").is_file() else "suffix+recycling"
        parts = (
            f"{name}:{Path(path).expanduser().resolve()}" if path else name for name, path in split_drafters(drafter)
        )
        return dataclasses.replace(engine, model=str(model), drafter="+".join(parts) or None)


def load_config(environ: Mapping[str, str] | None = None, file: Path | None = None) -> ServiceConfig:
    """Read the configuration. ``file``: a TOML file; without it ``FIRSTWORD_CONFIG``, then ``firstword.toml`` if there.

    Raises ConfigError for an unreadable file, an unknown key and a value out of range, and names each.
    """
    environ = os.environ if environ is None else environ
    values = _read_file(environ, file)
    _overlay_environment(values, environ)
    telemetry = values.setdefault("telemetry", {})
    if isinstance(telemetry, dict) and environ.get("OTEL_SDK_DISABLED", "").lower() != "true":
        for variable, key in OTEL_VARIABLES.items():
            if environ.get(variable):
                telemetry.setdefault(key, environ[variable])
    try:
        return ServiceConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_describe(e["loc"], e["msg"]) for e in error.errors())) from None


def _read_file(environ: Mapping[str, str], file: Path | None) -> dict[str, Any]:
    path = file
    if path is None and environ.get(FILE_VARIABLE):
        path = Path(environ[FILE_VARIABLE])
    if path is None:
        path = Path(DEFAULT_FILE)
        if not path.is_file():
            return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _overlay_environment(values: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Put ``FIRSTWORD_A__B`` at ``values["a"]["b"]``. Values stay text; validation turns them into what they mean."""
    for name, value in sorted(environ.items()):
        if not name.startswith(PREFIX) or name == FILE_VARIABLE or name in CLIENT_VARIABLES:
            continue
        section, separator, key = name[len(PREFIX) :].lower().partition("__")
        if not separator or not key:
            raise ConfigError(f"{name}: unknown variable; settings are named {PREFIX}SECTION__KEY")
        target = values.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigError(f"{name}: {section} is no section")
        target[key] = value


def _describe(location: tuple[int | str, ...], message: str) -> str:
    """One complaint of the validation, under both names that a setting has."""
    dotted = ".".join(str(part) for part in location)
    if message == "Extra inputs are not permitted":
        message = "unknown key"
    variable = PREFIX + "__".join(str(part).upper() for part in location)
    return f"{dotted} ({variable}): {message.removeprefix('Value error, ')}"
