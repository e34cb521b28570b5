"""What must outlive a call's process: one small protocol, a store that keeps nothing, and Redis."""

from service.store.directory import Pod
from service.store.memory import MemoryStore
from service.store.naming import new_pod_id
from service.store.protocol import CallKey, CallLog, Elsewhere, Ownership, Store, StoreUnavailable, Superseded, Taken
from service.store.redis_store import RedisOptions, RedisStore
from service.store.sealing import AesGcm

__all__ = [
    "AesGcm",
    "CallKey",
    "CallLog",
    "Elsewhere",
    "MemoryStore",
    "Ownership",
    "Pod",
    "RedisOptions",
    "RedisStore",
    "Store",
    "StoreUnavailable",
    "Superseded",
    "Taken",
    "new_pod_id",
]
