"""What calls, callers and tenants are called in Redis: in names that tell nothing of them."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from service.store.protocol import CallKey


class Naming:
    """keys: names are made with the last one; those of tenants, which pods compare, with each."""

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        self._keys = keys

    def call(self, key: CallKey) -> str:
        """As it stands in the index of its caller."""
        return self._hidden("call", key.tenant, key.session)

    def keys_of(self, key: CallKey) -> tuple[str, str]:
        """As the function of the same name."""
        return keys_of(self.call(key))

    def callers(self, tenant: str, caller: str) -> str:
        """Of the index of a caller's calls, whose leases say it too."""
        return f"firstword:caller:{self._hidden('caller', tenant, caller)}"

    def tenants(self, tenant: str) -> list[str]:
        """One by each key: pods that share one of them count together."""
        return [_hidden(key, "tenant", tenant) for key in self._keys]

    def place(self, key: CallKey, seq: int) -> bytes:
        """Of a record, which is sealed for it."""
        return f"{self.call(key)}:{seq}".encode()

    def _hidden(self, *parts: str) -> str:
        return _hidden(self._keys[-1], *parts)


def _hidden(key: bytes, *parts: str) -> str:
    return hmac.new(key, "\0".join(parts).encode(), hashlib.sha256).hexdigest()[:40]


def keys_of(name: str) -> tuple[str, str]:
    """Of the lease and of the log of the call with this name, in one slot of a cluster."""
    return f"firstword:{{{name}}}:lease", f"firstword:{{{name}}}:log"


def name_of(value: bytes | str) -> str:
    """What Redis calls something."""
    return value.decode() if isinstance(value, bytes) else value


def moment(opened_at: float) -> str:
    """Of a call's opening, the same from whoever knows it; empty where it is not known (0)."""
    return repr(opened_at) if opened_at else ""


def new_pod_id() -> str:
    """Of one process; one that is started again is another pod."""
    return secrets.token_hex(8)
