"""Calls that alone the store refuses, or that cannot be written down: they wait by themselves, and hold no other up."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import redis.asyncio
from redis.exceptions import RedisError, ResponseError

from service.store import scripts
from service.store.demotion import DEMOTED
from service.store.log import WriteBehind

log = logging.getLogger(__name__)

BACKOFF_S = 0.05
MAX_PARKED_S = 10.0
"""At most so long a call waits whose records alone the store refuses."""
MAX_REFUSALS = 30
"""After which what is left of a call that has ended here is given up, unless it is to be deleted."""


class Doubts:
    """Whether it is the store, where it refuses what calls have to say. lease_s: as in ``RedisOptions``."""

    def __init__(self, client: redis.asyncio.Redis, pod_id: str, lease_s: float) -> None:
        self._redis = client
        self._pod_id = pod_id
        self._lease_s = lease_s

    async def fault(self, refused: Iterable[Exception], *, others_went: bool) -> Exception | None:
        """What keeps the store from taking anything; None where it is the calls that it refused. Where all were refused
        it is asked to take a call that is nobody's: it may answer heartbeats, and yet run no scripts.
        """
        answers = [error for error in refused if isinstance(error, RedisError)]
        if demoted := next((error for error in answers if isinstance(error, DEMOTED)), None):
            return demoted
        if answers and not others_went:
            own = f"firstword:pod:{{{self._pod_id}}}"
            arguments = (1, self._pod_id, 0, -1, round(self._lease_s * 1000), "0", "", "", 1, b"")
            try:
                answer = await self._redis.eval(scripts.APPEND, 2, f"{own}:asked", f"{own}:told", *arguments)
            except (RedisError, OSError, TimeoutError) as error:
                return error
            if answer[0] != b"ok":
                return ResponseError(f"{answer[0]!r} is no answer")
        return None


def put_off(log_: WriteBehind, error: Exception, *, tell: bool) -> None:
    """It is tried again, the later the more often it was refused. tell: whether the call is to hear of it."""
    told = {"session": log_.key.session, "cause": f"{type(error).__name__}: {error}"}
    if not log_.refusals:
        log.error("what a call has to say is refused, or cannot be written down", extra=told, exc_info=error)
        if tell:
            log_.ownership.on_durable(False)
    log_.refusals = min(log_.refusals + 1, MAX_REFUSALS)
    log_.retry_at = time.monotonic() + min(BACKOFF_S * 2**log_.refusals, MAX_PARKED_S)
    if log_.refusals == MAX_REFUSALS and (log_.closing or log_.left) and log_.closing != "forgotten":
        log.error("the end of a call is given up", extra=told)
        log_.lose()


def let_go_on(log_: WriteBehind, *, tell: bool) -> None:
    """What it had to say was taken."""
    if log_.refusals:
        log_.refusals = 0
        if tell and not log_.dead:
            log_.ownership.on_durable(True)
