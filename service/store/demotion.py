"""A store's server that may not be written to any more: a failover behind one address demotes it in place, and leaves
the connections to it open.
"""

from __future__ import annotations

import contextlib

import redis.asyncio
from redis.exceptions import BusyLoadingError, MasterDownError, ReadOnlyError, RedisError

DEMOTED = (ReadOnlyError, MasterDownError, BusyLoadingError)
"""What only a server answers that is, or is becoming, another one's replica, or that has just been started."""


async def leave_if_demoted(client: redis.asyncio.Redis, error: Exception) -> None:
    """Connect anew the next time where such a server has answered: the address may lead to another one by now.

    Connections in use are left alone, as they may be newer ones; those that are not find out by themselves.
    """
    if isinstance(error, DEMOTED):
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await client.connection_pool.disconnect(inuse_connections=False)
