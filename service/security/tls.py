"""TLS of the service's port, with certificates that are replaced while connections are open.

gRPC asks before each handshake whether there is a new certificate; connections that are up keep what they began with.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from service.security.files import Contents, Reloads, SecurityError, Watched
from service.security.settings import TlsConfig


@dataclass(frozen=True)
class ServerCertificate:
    """expires: seconds since the epoch. configuration: what gRPC takes."""

    expires: float
    configuration: grpc.ServerCertificateConfiguration


class ServerTls:
    """credentials: for ``add_secure_port``."""

    def __init__(self, config: TlsConfig, told: Reloads) -> None:
        """Raises SecurityError for files that cannot be used."""
        assert config.certificate is not None and config.key is not None
        paths = [config.certificate, config.key, *([config.client_ca] if config.client_ca else [])]
        self.files = Watched("certificate", paths, server_certificate, told)
        self._handed = self.files.value
        newest: Any = self._newest  # the stubs do not know that it may say None
        self.credentials = grpc.dynamic_ssl_server_credentials(
            self._handed.configuration, newest, require_client_authentication=config.client_ca is not None
        )

    @property
    def expires_in_s(self) -> float:
        """Of the certificate in use."""
        return self.files.value.expires - time.time()

    def _newest(self) -> grpc.ServerCertificateConfiguration | None:
        """The certificate for the next handshakes; None: as before. In a thread of gRPC's: must not block or raise."""
        newest = self.files.value
        if newest is self._handed:
            return None
        self._handed = newest
        return newest.configuration


def server_certificate(
    contents: Contents, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> ServerCertificate:
    """Of (chain, key) or (chain, key, client authorities), each a PEM file. Raises SecurityError for what gRPC or
    clients would refuse: between two files that are replaced one after the other, they do not belong together.
    """
    chain_pem, key_pem, *authorities_pem = contents
    try:
        chain = x509.load_pem_x509_certificates(chain_pem)
        key = load_pem_private_key(key_pem, None)
        for pem in authorities_pem:
            x509.load_pem_x509_certificates(pem)
    except (ValueError, TypeError) as error:
        raise SecurityError(f"not PEM, or a key with a passphrase: {type(error).__name__}") from None
    own = chain[0]
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if own.public_key().public_bytes(*form) != key.public_key().public_bytes(*form):
        raise SecurityError("the key is not the certificate's")
    if not own.not_valid_before_utc <= now() <= own.not_valid_after_utc:
        valid = f"{own.not_valid_before_utc:%Y-%m-%d %H:%M} to {own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        raise SecurityError(f"the certificate is valid from {valid}, which is not now")
    authorities = b"\n".join(authorities_pem) or None
    configuration = grpc.ssl_server_certificate_configuration([(key_pem, chain_pem)], root_certificates=authorities)
    return ServerCertificate(own.not_valid_after_utc.timestamp(), configuration)
