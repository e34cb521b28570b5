"""The tenant that a client's certificate names. TLS has checked that it is of an authority that is trusted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from service.security.identity import TENANT_NAME, Principal
from service.security.refusals import no_tenant
from service.security.settings import TlsConfig

COMMON_NAME, URI = "x509_common_name", "peer_uri"
"""What gRPC calls them among the properties of a connection (``grpc_security_constants.h``)."""

Properties = Mapping[str, Iterable[bytes]]


class CertificateTenants:
    """As ``[tls]`` says."""

    def __init__(self, config: TlsConfig) -> None:
        self._config = config

    def principal(self, properties: Properties) -> Principal | None:
        """Whose a connection is; None where certificates name nobody, by configuration. Raises Problem where this one
        names no tenant, or several.
        """
        if self._config.tenant_from == "nothing":
            return None
        names = self._names(properties)
        if len(names) != 1 or TENANT_NAME.fullmatch(names[0]) is None:
            raise no_tenant(f"the certificate has {len(names)} names of the form wanted")
        return Principal(names[0], "certificate", names[0])

    def _names(self, properties: Properties) -> Sequence[str]:
        if self._config.tenant_from == "common_name":
            return [_text(name) for name in properties.get(COMMON_NAME, ())]
        prefix = self._config.tenant_uri_prefix
        uris = [_text(uri) for uri in properties.get(URI, ())]
        return [uri.removeprefix(prefix) for uri in uris if uri.startswith(prefix)]


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
