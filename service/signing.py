"""What a client holds for the service and may not change: records, and the tokens that a call is resumed with.

HMAC-SHA256 by itsdangerous. Keys rotate: the first one signs, every one is believed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from dataclasses import dataclass

from itsdangerous import BadSignature, Signer

from service.problems import Problem, Reason
from service.store import CallKey


@dataclass(frozen=True)
class Signing:
    """keys: at least one; the first one signs, each is believed. token_ttl_s: how long a resume token can be used."""

    keys: tuple[str, ...]
    token_ttl_s: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "_records", self._signer("firstword.record"))
        object.__setattr__(self, "_tokens", self._signer("firstword.resume"))

    def record(self, payload: bytes) -> bytes:
        """A record that can be handed back."""
        return self._records.sign(payload)  # type: ignore[attr-defined, no-any-return]

    def payload(self, record: bytes) -> bytes:
        """What a record holds. Raises Problem for one that was changed."""
        try:
            return self._records.unsign(record)  # type: ignore[attr-defined, no-any-return]
        except BadSignature:
            raise Problem(Reason.FORGED, "a record was changed", field="open.resume.records") from None

    def token(self, key: CallKey, opened_at: float) -> bytes:
        """What a client needs to go on with the call that was opened then, until ``token_ttl_s`` from now."""
        told = {
            "tenant": key.tenant,
            "call": key.session,
            "until": time.time() + self.token_ttl_s,
            "opened_at": opened_at,
        }
        return self._tokens.sign(json.dumps(told).encode())  # type: ignore[attr-defined, no-any-return]

    def call_of(self, token: bytes, tenant: str) -> CallKey:
        """The call of a token. Raises Problem for one that is forged, expired, or another tenant's: whose it is, is
        nobody else's business, so the first and the last are told alike.
        """
        not_yours = Problem(Reason.FORGED, "the resume token is not valid", field="open.resume.resume_token")
        try:
            told = json.loads(self._tokens.unsign(token))  # type: ignore[attr-defined]
        except BadSignature:
            raise not_yours from None
        if told["tenant"] != tenant:
            raise not_yours
        if told["until"] < time.time():
            message = "the resume token has expired"
            raise Problem(Reason.TOKEN_EXPIRED, message, field="open.resume.resume_token")
        return CallKey(told["tenant"], told["call"])

    def opened_at(self, token: bytes) -> float:
        """When the call of a token that ``call_of`` has read was opened: names come back, and calls do not. 0: a server
        that did not say so has made it.
        """
        return float(json.loads(self._tokens.unsign(token)).get("opened_at", 0.0))  # type: ignore[attr-defined]

    def _signer(self, purpose: str) -> Signer:
        # Keys of their own for each purpose, made once: itsdangerous would make them again with each signature.
        keys = [
            hmac.digest(key.encode(), purpose.encode(), "sha256") for key in reversed(self.keys)
        ]  # the last one signs
        return Signer(keys, key_derivation="none", digest_method=hashlib.sha256)
