"""Who has opened a stream, by what it brings: an API key or a token in its metadata, its connection's certificate."""

from __future__ import annotations

from collections.abc import Sequence

from service.problems import Problem, Reason
from service.security.api_keys import PREFIX, ApiKeys
from service.security.certificates import CertificateTenants, Properties
from service.security.files import Watched
from service.security.identity import Principal
from service.security.refusals import missing, refused
from service.security.tokens import Tokens

HEADER, SCHEME = "authorization", "bearer"

Metadata = Sequence[tuple[str, str | bytes]]


class Authenticator:
    """keys, tokens: None where there are none. certificates: which the connection has been checked for."""

    def __init__(self, keys: Watched[ApiKeys] | None, tokens: Tokens | None, certificates: CertificateTenants) -> None:
        self._keys = keys
        self._tokens = tokens
        self._certificates = certificates

    async def principal(self, metadata: Metadata, properties: Properties) -> Principal:
        """Raises Problem for whoever is nobody. Where the certificate names a tenant too, both must be the same."""
        if self._keys is None and self._tokens is None:
            # The connection has a certificate that is trusted, or it would not be there.
            return self._certificates.principal(properties) or Principal("", "certificate")
        credential = _credential(metadata)
        if credential is None:
            named = self._certificates.principal(properties)
            if named is None:
                raise missing()
            return named
        found = await self._of_credential(credential)
        named = self._certificates.principal(properties)
        if named is not None and named.tenant != found.tenant:
            cause = f"the certificate is of {named.tenant}, the credentials are of {found.tenant}"
            raise Problem(Reason.OTHER_TENANT, "certificate and credentials are not of one tenant", cause=cause)
        return found

    async def _of_credential(self, credential: str) -> Principal:
        if credential.startswith(PREFIX):  # no token does: theirs begin with a brace in base64
            if self._keys is None:
                raise refused("an API key, and there are none")
            return self._keys.value.principal(credential)
        if self._tokens is None:
            raise refused("no API key, and there are no tokens")
        return await self._tokens.principal(credential)


def _credential(metadata: Metadata) -> str | None:
    """What stands behind ``authorization: Bearer``; None without it. Raises Problem for several, and other schemes."""
    given = [value for key, value in metadata if key == HEADER]
    if not given:
        return None
    value = given[0]
    if len(given) > 1 or not isinstance(value, str):
        raise refused("several authorization headers")
    scheme, _, credential = value.strip().partition(" ")
    if scheme.lower() != SCHEME or not credential.strip():
        raise refused("no bearer in the authorization header")
    return credential.strip()
