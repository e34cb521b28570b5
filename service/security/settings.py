"""The sections ``[tls]``, ``[auth]``, ``[jwt]`` and ``[tenant.NAME]`` of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from service.section import Section, separated

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Signatures that a token may have. None with a shared secret: whoever could check a token could make one."""

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class TlsConfig(Section):
    """TLS on the service's port; without a certificate it is plain text.

    certificate, key: PEM files, the chain with the server's own first. client_ca: PEM file of the authorities that
    clients' certificates may come from; with it none is let in without one. tenant_from: what of a client's certificate
    names its tenant: its only common name, or what follows tenant_uri_prefix in the only URI that begins with it.
    """

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    tenant_from: Literal["nothing", "common_name", "uri"] = "nothing"
    tenant_uri_prefix: str = ""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key must be set together")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs certificate and key")
        if self.tenant_from != "nothing" and self.client_ca is None:
            raise ValueError("tenant_from needs client_ca: a certificate that nobody has checked names nobody")
        if (self.tenant_from == "uri") != bool(self.tenant_uri_prefix):
            raise ValueError('tenant_uri_prefix goes with tenant_from = "uri"')
        return self


class AuthConfig(Section):
    """Credentials that the service knows itself. api_keys_file: TOML file with hashes of API keys; None: no keys."""

    api_keys_file: Path | None = None


class JwtConfig(Section):
    """Tokens of an issuer elsewhere. There are none without ``issuer``.

    issuer, audience: what ``iss`` must be, and ``aud`` must be or hold. algorithms: that are believed, whatever a token
    says. jwks_file, jwks_url: the issuer's keys (RFC 7517), in a file, at an address, or both; refresh_s: how often the
    address is asked. tenant_claim: the claim that names the tenant. leeway_s: by which clocks may differ.
    """

    issuer: str = ""
    audience: str = ""
    algorithms: tuple[Algorithm, ...] = ("RS256", "ES256", "EdDSA")
    jwks_file: Path | None = None
    jwks_url: str = ""
    refresh_s: float = Field(default=300.0, ge=1)
    tenant_claim: str = "tenant"
    leeway_s: float = Field(default=30.0, ge=0, le=600)

    @field_validator("algorithms", mode="before")
    @classmethod
    def _separate(cls, value: object) -> object:
        return separated(value)

    @field_validator("jwks_url", mode="after")
    @classmethod
    def _nobody_between(cls, value: str) -> str:
        """Whoever could change what is fetched could be any tenant."""
        parts = urlsplit(value)
        if value and parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise ValueError("must be https://, or http:// of this machine")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        has_keys = self.jwks_file is not None or bool(self.jwks_url)
        if self.issuer or self.audience or has_keys:
            if not (self.issuer and self.audience and has_keys):
                raise ValueError("needs issuer, audience, and jwks_file or jwks_url")
            if not self.algorithms:
                raise ValueError("algorithms is empty, so no token would be believed")
        return self


class TenantConfig(Section):
    """Limits of one tenant, in place of those of all: of ``admission.max_calls_per_tenant``,
    ``admission.max_opens_per_minute_per_tenant`` and ``call.max_events_per_s``. None: as for all.
    """

    max_calls: int | None = Field(default=None, ge=0)
    max_opens_per_minute: int | None = Field(default=None, ge=1)
    max_events_per_s: int | None = Field(default=None, ge=1)
