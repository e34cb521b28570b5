"""Records: one event's share in a call, as a store and a client keep it, and how a call is read out of many.

A record is signed JSON, versioned by ``Record.v``; a field that a version does not know is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pydantic import TypeAdapter, ValidationError

from engine.errors import InvalidSampling
from service.call_state import CallState, Delta
from service.problems import Problem, Reason, invalid
from service.signing import Signing
from service.store import CallKey

VERSION = 1
"""To be raised where an older server would read a record wrongly, which then refuses it. Not for a field more: that is
passed over there, and has a default here for records without it.
"""


@dataclass(frozen=True)
class Record:
    """generation: of the lease that it was written under; base: the last event of the generations before that counts.

    prev: ``seq`` of the record before; 0 where this one is the whole call. opened_at: of the call, whose name another
    one may have had; 0 where a server wrote it that did not say so. v: of the form; a record that does not say it is of
    the first.
    """

    tenant: str
    call: str
    generation: int
    base: int
    seq: int
    prev: int
    deltas: tuple[Delta, ...]
    opened_at: float = 0.0
    v: int = 1


_ADAPTER = TypeAdapter(Record)


def written(signing: Signing, record: Record) -> bytes:
    return signing.record(_ADAPTER.dump_json(replace(record, v=VERSION), exclude_defaults=True))


def read(signing: Signing, record: bytes) -> Record:
    """Raises Problem for one that was changed, or that this version cannot read."""
    try:
        found = _ADAPTER.validate_json(signing.payload(record))
    except (ValidationError, InvalidSampling):  # an earlier version may have allowed more
        raise invalid("open.resume.records", "a record is of a form that this version does not know") from None
    if found.v != VERSION:
        raise invalid("open.resume.records", f"a record is of version {found.v}; known here is {VERSION}")
    return found


def of_call(records: Iterable[Record], key: CallKey) -> list[Record]:
    """Raises Problem for a record of a call of another name."""
    found = list(records)
    if any((record.tenant, record.call) != (key.tenant, key.session) for record in found):
        raise Problem(Reason.FORGED, "a record is of another call", field="open.resume.records")
    return found


def opened_then(records: Iterable[Record], opened_at: float) -> list[Record]:
    """Those that are not of an earlier or a later call of the same name."""
    return [record for record in records if may_be_one(record.opened_at, opened_at)]


def may_be_one(opened_at: float, other: float) -> bool:
    """Whether two calls of one name are one, by when they were opened; 0 where that is not known."""
    return opened_at == other or not opened_at or not other


def merged(records: Iterable[Record]) -> dict[int, Record]:
    """By ``seq``: what counts of records from several hands. What a generation wrote behind the place where the next
    one took over is void, whoever still has it.
    """
    kept: dict[int, Record] = {}
    taken_over: set[tuple[int, int]] = set()
    for record in sorted(records, key=lambda record: (record.generation, record.seq)):
        if (place := (record.generation, record.base)) not in taken_over:  # once each: a long call has many records
            taken_over.add(place)
            for seq in [seq for seq, old in kept.items() if old.generation < record.generation and seq > record.base]:
                del kept[seq]
        kept[record.seq] = record
    return dict(sorted(kept.items()))


def replayed(records: Mapping[int, Record], last_seq: int) -> tuple[CallState, int] | None:
    """(the call as it was after event ``last_seq``, the last record in it); None where records are missing."""
    chain = [record for seq, record in sorted(records.items()) if seq <= last_seq]
    start = next((at for at in reversed(range(len(chain))) if chain[at].prev == 0), None)
    if start is None:
        return None
    chain = chain[start:]
    try:
        state = CallState.begun(chain[0].deltas[0])
        at = 0
        for record in chain:
            if record.prev > at:
                return None
            for delta in record.deltas:
                state.apply(delta)
            at = record.seq
    except ValueError:
        return None
    return state, at
