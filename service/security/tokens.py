"""JSON Web Tokens of an issuer elsewhere (RFC 7519, checked as RFC 8725 recommends), by PyJWT."""

from __future__ import annotations

from typing import Any

import jwt

from service.problems import Problem, Reason
from service.security.files import Reloads
from service.security.identity import TENANT_NAME, Principal
from service.security.key_sets import AGAIN_S, Keys
from service.security.refusals import expired, no_tenant, refused
from service.security.settings import JwtConfig

UNREADABLE = (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError)
"""What comes of a token that was made to be trouble: endless numbers, brackets in brackets in brackets."""


class Tokens:
    """As ``[jwt]`` says."""

    def __init__(self, config: JwtConfig, told: Reloads) -> None:
        """Raises SecurityError for a file that cannot be used."""
        self._config = config
        self.keys = Keys(config, told)

    async def principal(self, token: str) -> Principal:
        """Whose a token is. Raises Problem for one that is not valid here and now."""
        try:
            name = jwt.get_unverified_header(token).get("kid", "")
        except UNREADABLE:
            raise refused("no token") from None
        key = await self.keys.key(name if isinstance(name, str) else "")
        if key is None and not self.keys.known:
            message = "the keys of the tokens' issuer are not known yet"
            raise Problem(Reason.AUTHENTICATION_UNAVAILABLE, message, retry_after_s=AGAIN_S)
        if key is None:
            raise refused("the token's key is not known")
        return self._named(self._claims(token, key))

    def _claims(self, token: str, key: jwt.PyJWK) -> dict[str, Any]:
        """What a token says, once it is known to be the issuer's, for us, and in its time."""
        config = self._config
        try:
            return jwt.decode(
                token,
                key,
                algorithms=list(config.algorithms),
                issuer=config.issuer,
                audience=config.audience,
                leeway=config.leeway_s,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:  # which is looked at after the signature
            raise expired("the token has expired") from None
        except UNREADABLE as error:
            raise refused(type(error).__name__) from None

    def _named(self, claims: dict[str, Any]) -> Principal:
        tenant, subject = claims.get(self._config.tenant_claim), claims.get("sub", "")
        if not isinstance(tenant, str) or TENANT_NAME.fullmatch(tenant) is None:
            raise no_tenant(f"the token's claim {self._config.tenant_claim} is none")
        return Principal(tenant, "jwt", str(subject))
