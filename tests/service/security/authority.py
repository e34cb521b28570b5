"""An authority that makes certificates, as files that a service and its clients read."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from firstword import Tls

HERE = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))


@dataclass(frozen=True)
class Pair:
    """PEM files of a certificate and its key."""

    certificate: Path
    key: Path

    def replace_with(self, other: Pair) -> None:
        """The certificate first and then the key, as two steps."""
        self.certificate.write_bytes(other.certificate.read_bytes())
        self.key.write_bytes(other.key.read_bytes())


class Authority:
    """directory: for its files. ``ca``: its own certificate."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._made = 0
        self.ca = directory / f"{name}.pem"
        own = self._signed(self._name, self._key.public_key(), (), timedelta(days=1), authority=True)
        self.ca.write_bytes(own.public_bytes(Encoding.PEM))

    def pair(
        self,
        name: str = "server",
        alternatives: Sequence[x509.GeneralName] = HERE,
        valid: timedelta = timedelta(days=1),
    ) -> Pair:
        """A certificate for a common name and alternative ones. valid: from now on; below 0, it has expired."""
        self._made += 1
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = Pair(self._directory / f"{self._made}.crt", self._directory / f"{self._made}.key")
        made.certificate.write_bytes(
            self._signed(subject, key.public_key(), alternatives, valid).public_bytes(Encoding.PEM)
        )
        made.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return made

    def trusting(self, own: Pair | None = None) -> Tls:
        """What a client trusts and shows."""
        return Tls(self.ca, own and own.certificate, own and own.key)

    def channel(self, own: Pair | None = None) -> grpc.ChannelCredentials:
        return self.trusting(own).channel_credentials()

    def _signed(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        alternatives: Sequence[x509.GeneralName],
        valid: timedelta,
        *,
        authority: bool = False,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + valid)
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return builder.sign(self._key, hashes.SHA256())
