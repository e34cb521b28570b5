"""How a client comes back to its call: to this server, which may hold it warm, or from another one's hands.

What counts is what the client has received: the call goes on from there, and whatever was said or written behind it is
said anew, by the same seed in the same words. Awaits the store; the only part of a call that does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from service import call_records
from service.call import Call, End
from service.call_records import Record
from service.call_services import CallServices
from service.client_events import Resume
from service.outbound import Send
from service.portions import in_portions
from service.problems import Problem, Reason
from service.store import CallKey, Elsewhere, StoreUnavailable, Superseded, Taken

log = logging.getLogger(__name__)

TOKEN = "open.resume.resume_token"

RETRY_S = 0.5
"""When a client that could not be helped may ask again."""


async def resumed(
    services: CallServices, event: Resume, tenant: str, send: Send, end: End, make: Callable[[], Call]
) -> Call:
    """The call that a client comes back to, open on this stream. make: gives a call that has not begun, where it is not
    here already. Raises Problem where it cannot be gone on with.
    """
    try:
        call, kind = await _resumed(services, event, tenant, send, end, make)
    except Problem as problem:
        services.telemetry.resume_refused(problem.reason.value)
        raise
    services.telemetry.resumed(kind)
    return call


async def _resumed(
    services: CallServices, event: Resume, tenant: str, send: Send, end: End, make: Callable[[], Call]
) -> tuple[Call, str]:
    """As ``resumed``; and of which kind it was, as in ``service.telemetry.metrics.RESUMES``."""
    key = services.signing.call_of(event.token, tenant)
    opened_at = services.signing.opened_at(event.token)
    read = [call_records.read(services.signing, record) async for record in in_portions(event.records)]
    handed = call_records.of_call(read, key)
    here = services.live.get(key)
    _require_one(here, opened_at)
    if here is not None and here.attach(send, end, event):
        return here, "here"
    # Where there is no seat for it, it stays where it is. How many pages it needs is known when it was taken.
    call = make()
    try:
        taken, asked = await _taken(services, key, event, opened_at, here_already=key in services.live)
        try:
            await _go_on(services, call, key, event, handed, opened_at, taken, asked=asked)
        except Exception:
            if asked:
                await _release(services, key, taken.generation)
            raise
    except BaseException:
        call.disconnect()
        raise
    if not (asked and services.store.keeps):
        return call, "without_store"
    return call, "insisted" if event.take_over else "taken_over"


async def _go_on(
    services: CallServices,
    call: Call,
    key: CallKey,
    event: Resume,
    handed: Sequence[Record],
    opened_at: float,
    taken: Taken,
    *,
    asked: bool,
) -> None:
    """Make ``call`` the one that was taken, as its client knows it. handed: the records that the client holds. asked:
    whether the store was. Raises Problem where it cannot be.
    """
    records = call_records.of_call([*handed, *await _readable(services, taken)], key)
    found = call_records.replayed(call_records.merged(call_records.opened_then(records, opened_at)), event.last_seq)
    if found is None and not asked:
        raise Problem(Reason.STORE_UNAVAILABLE, "the store does not answer", retry_after_s=RETRY_S)
    if found is None:
        raise Problem(Reason.UNKNOWN_CALL, "not all of the call is known", field="open.resume.records")
    state, known = found
    if known < event.last_record:  # the store came back without it: it would be said again
        raise Problem(Reason.UNKNOWN_CALL, "not all that was said is known", field="open.resume.last_record_seq")
    stale = services.live.get(key)  # it may have been made while the store was asked
    _require_one(stale, opened_at)
    if stale is not None:
        if stale.generation > taken.generation:
            raise _superseded(stale.generation)
        stale.abandon(Problem(Reason.MOVED, "the client has come back on another stream"), "elsewhere")
    failed = call.restore(state, taken.generation, event.last_seq, max(taken.records, default=0))
    if failed is not None:
        raise failed


async def _release(services: CallServices, key: CallKey, generation: int) -> None:
    """Another server shall not send the client back to this one. Where a call of this name is here, it keeps the place
    that it has by that.
    """
    if key in services.live:
        return
    try:
        await services.store.release(key, generation)
    except StoreUnavailable:
        log.warning("a call that could not be gone on with is still this server's", extra={"session": key.session})


def _require_one(here: Call | None, opened_at: float) -> None:
    """Raises Problem where the call of this name that is here is not the one that was opened then."""
    if here is not None and not call_records.may_be_one(here.opened_at, opened_at):
        raise Problem(Reason.UNKNOWN_CALL, "the call is over: another one has its name", field=TOKEN)


async def _taken(
    services: CallServices, key: CallKey, event: Resume, opened_at: float, *, here_already: bool
) -> tuple[Taken, bool]:
    """Make the call this server's; and whether the store was asked. Raises Problem where it is over, or better taken
    elsewhere.
    """
    generation, insist = event.last_generation + 1, event.take_over or here_already
    try:
        found = await services.store.take(key, generation, event.last_seq, insist=insist, opened_at=opened_at)
    except StoreUnavailable:
        # What the client holds may be enough. If not, it is asked to come again, and so to the store.
        log.warning("resuming without the store", extra={"session": key.session})
        return Taken(generation, {}), False
    if found is None:
        raise Problem(Reason.UNKNOWN_CALL, "the call is over, or another one has its name", field=TOKEN)
    if isinstance(found, Superseded):  # by a later try of the same client, which may not wait for this one any more
        raise _superseded(found.generation)
    if isinstance(found, Elsewhere):
        message, place = "another server is warm for the call", {"address": found.address}
        raise Problem(Reason.WARM_ELSEWHERE, message, retry_after_s=0.0, metadata=place)
    return found, True


def _superseded(generation: int) -> Problem:
    newer = {"generation": str(generation)}
    return Problem(Reason.SUPERSEDED, "a newer resume has the call", retry_after_s=0.0, metadata=newer)


async def _readable(services: CallServices, taken: Taken) -> list[Record]:
    """What the store has; a record of it that cannot be read is as good as lost."""
    found = []
    async for seq, record in in_portions(taken.records.items()):
        try:
            found.append(call_records.read(services.signing, record))
        except Problem as problem:
            log.error("a stored record cannot be read", extra={"seq": seq, "cause": str(problem)})
    return found
