"""The store that a service is configured with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from service.config import ServiceConfig
from service.store.directory import Pod
from service.store.naming import new_pod_id
from service.store.redis_store import RedisOptions, RedisStore
from service.store.sealing import AesGcm

log = logging.getLogger(__name__)


def store_of(
    config: ServiceConfig,
    address: str,
    load: Callable[[], tuple[int, int]],
    tenants: Callable[[], Mapping[str, int]],
) -> RedisStore:
    """Redis, as ``[store]`` says. address, load, tenants: of this pod, as in ``Pod``."""
    chosen = config.store
    options = RedisOptions(
        url=chosen.url,
        timeout_s=chosen.timeout_s,
        lease_s=chosen.lease_s,
        retention_s=chosen.retention_s,
        trust_after_s=chosen.trust_after_s,
        name_keys=_name_keys(config),
    )
    return RedisStore(options, Pod(new_pod_id(), address, load, tenants), AesGcm(chosen.keys))


def _name_keys(config: ServiceConfig) -> tuple[bytes, ...]:
    """The key of names, or else all that sign: a server that has one more or less than another then finds its calls no
    more, while both hold them. That is said while there is but one key too: when there are two it is too late.
    """
    if config.store.name_key:
        return (config.store.name_key.encode(),)
    log.warning(
        "store.name_key is not set: names in the store are made with resume.keys, and calls are lost when they rotate"
    )
    return tuple(secret.encode() for secret in config.resume.secrets)
