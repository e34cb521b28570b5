"""Which new calls are taken: budgets for calls, pages, what waits and what is spoken, and fair shares for tenants.

A call that was taken keeps its place until it ends; whoever finds no room is told when to ask again. Knows the engine's
figures and the lengths of contexts; knows no transport, no turns and no text.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from engine import records
from engine.demand import SILENT_S, SMOOTHED_S
from service.config import AdmissionConfig
from service.problems import Problem, Reason
from service.rate import TokenBucket
from service.security.settings import TenantConfig
from service.telemetry import Telemetry

SOONEST_S, LATEST_S = 0.5, 30.0
"""Bounds of the advice when to ask again: what is known of the past says little about less, and about more."""

SPEAKS = 0.5
"""Part of its time that a call is spoken to."""
RELIEVED = 0.9
"""Part of the greatest load of speech, below which calls are taken again after one was refused for it."""

REMEMBERED = 1024
"""Tenants whose opens are counted, from which on those that have opened nothing lately are forgotten."""


class Departures:
    """How often calls have ended lately, and so when there will be room for whoever is refused.

    since: from when on they are watched (seconds of the caller's clock).
    """

    def __init__(self, since: float) -> None:
        self._marks = deque([since], maxlen=33)
        self._promised = since

    def ended(self, now: float) -> None:
        self._marks.append(now)

    def advice(self, now: float) -> float:
        """Seconds after which to ask again. Each who is told so gets the next place: who comes together is spread.

        Where no call has ended yet, one will in about as long as none has.
        """
        interval = (now - self._marks[0]) / max(1, len(self._marks) - 1)
        wait = max(now, self._promised) + interval - now
        wait = min(max(wait, SOONEST_S), LATEST_S)
        self._promised = now + wait
        return wait


ASIDE_AGAIN_S = 1.0
"""After which a side question that found no room may be asked again: others have their answers soon."""

AskAside = Callable[[int, int], None]
"""Asks for room for a side question with so many tokens to compute, and so many more of its answer at most. Raises
Problem where there is none.
"""


@dataclass(eq=False)
class Seat:
    """The place of one call. since: when it was taken. tokens: the length of its context; None until it is open."""

    tenant: str
    admission: Admission
    since: float
    tokens: Callable[[], int] | None = None

    def open(self, tokens: Callable[[], int]) -> AskAside:
        """The call begins with a context of this length, which grows. Raises Problem where pages for it are wanting.

        Returns what side questions ask for room.
        """
        self.admission.open(self, tokens)
        return self._ask_aside

    def _ask_aside(self, prompt: int, answer: int) -> None:
        self.admission.ask_aside(self, prompt, answer)

    def leave(self) -> None:
        """The call is over, or has come to nothing. Idempotent."""
        self.admission.leave(self)


class Elsewhere(Protocol):
    """What other processes have of a tenant, as far as is known here at once: as in ``service.store.Store``."""

    def calls_elsewhere(self, tenant: str) -> int: ...

    def opened(self, tenant: str) -> None: ...

    def opens_elsewhere(self, tenant: str, since: float) -> Iterator[tuple[float, int]]: ...


@dataclass
class _Pace:
    """How often a tenant opens calls, here and elsewhere. heard_until: what was heard of up to then is counted."""

    bucket: TokenBucket
    heard_until: float = float("-inf")

    def hear(self, opens: Iterable[tuple[float, int]]) -> None:
        """(when, how many) others were opened elsewhere."""
        for when, number in opens:
            self.bucket.charge(when, number)
            self.heard_until = when


@dataclass
class _Tenant:
    departures: Departures
    seats: set[Seat] = field(default_factory=set)


_Why = tuple[Reason, str, _Tenant | None]
"""What a refusal says, and whose calls must end before there is room: the tenant's, or anybody's."""


@dataclass(frozen=True)
class _Budget:
    """Of what there is a ``total``. used: by all; own: by the tenant that asks for ``need`` more."""

    total: float
    used: float
    own: float
    need: float

    @property
    def exhausted(self) -> bool:
        return self.used + self.need > self.total

    def above_share(self, tenants: int, contended_from: float) -> bool:
        """Whether others may soon need what is left, and the tenant, having some, would have more than its share."""
        contended = self.used + self.need > contended_from * self.total
        return contended and self.own > 0 and self.own + self.need > self.total / tenants


class Admission:
    """The calls of one process on one model.

    beat: what the engine has said last of itself; None: nothing yet, and only calls are counted. page_tokens: size of
    a page. clock: monotonic seconds, the engine's own. tenants: limits of single ones, in place of the configuration's.
    elsewhere: what other processes have of a tenant.
    """

    def __init__(
        self,
        config: AdmissionConfig,
        beat: Callable[[], records.Beat | None],
        page_tokens: int,
        telemetry: Telemetry,
        clock: Callable[[], float] = time.monotonic,
        tenants: Mapping[str, TenantConfig] | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._config = config
        self._limits = dict(tenants or {})
        self._elsewhere = elsewhere
        self._paces: dict[str, _Pace] = {}
        self._beat = beat
        self._page_tokens = page_tokens
        self._telemetry = telemetry
        self._clock = clock
        self._tenants: dict[str, _Tenant] = {}
        self._departures = Departures(clock())
        self._wanting: dict[str, float] = {}
        """Tenants that were refused, and until when they are expected to ask again."""
        self._opened: deque[tuple[float, int]] = deque()
        """(when, tokens) of calls opened, and of questions asked, since the engine's last beat."""
        self._saturated = False
        """Whether the last new call was refused for the load of speech, or would have been."""

    @property
    def max_calls(self) -> int:
        """How many there can be at once."""
        return self._config.max_calls

    @property
    def seats(self) -> int:
        return sum(len(tenant.seats) for tenant in self._tenants.values())

    @property
    def seats_of(self) -> Mapping[str, int]:
        """By tenant."""
        return {name: len(tenant.seats) for name, tenant in self._tenants.items()}

    def would_seat(self, tenant: str, without: str, *, resumed: bool = False) -> bool:
        """Whether there would be a place among the calls for the tenant, if one of tenant ``without`` ended. Refuses
        nobody. resumed: as in ``take``.
        """
        return self._no_seat(tenant, self._calls_elsewhere(tenant, resumed), without) is None

    def ask(self, tenant: str) -> None:
        """A new call is wanted. Raises Problem where the tenant asks too often; whoever comes back does not ask."""
        own = self._limits.get(tenant)
        limit = (own and own.max_opens_per_minute) or self._config.max_opens_per_minute_per_tenant
        if limit is None:
            return
        now = self._clock()
        if len(self._paces) >= REMEMBERED:
            self._paces = {name: pace for name, pace in self._paces.items() if not pace.bucket.full(now)}
        pace = self._paces.setdefault(tenant, _Pace(TokenBucket(limit / 60.0, limit)))
        if self._elsewhere is not None:
            pace.hear(self._elsewhere.opens_elsewhere(tenant, pace.heard_until))
        if wait := pace.bucket.take(now):
            self._telemetry.refused(Reason.TENANT_TOO_MANY_OPENS.value)
            message = f"the tenant opens more than {limit} calls a minute"
            raise Problem(Reason.TENANT_TOO_MANY_OPENS, message, retry_after_s=max(wait, SOONEST_S))
        if self._elsewhere is not None:
            self._elsewhere.opened(tenant)

    def take(self, tenant: str, *, resumed: bool = False) -> Seat:
        """A place for a call. Raises Problem where there is none. resumed: it may still count where it comes from, and
        is not refused for speech that it was part of already.
        """
        with self._told(tenant):
            self._require_short_queue()
            if not resumed:
                self._require_time_for_speech()
            self._require_seat(tenant, self._calls_elsewhere(tenant, resumed))
        self._wanting.pop(tenant, None)
        seat = Seat(tenant, self, self._clock())
        self._tenants.setdefault(tenant, _Tenant(Departures(self._clock()))).seats.add(seat)
        return seat

    def open(self, seat: Seat, tokens: Callable[[], int]) -> None:
        """As ``Seat.open``."""
        with self._told(seat.tenant):
            self._require_pages(seat, tokens())
        seat.tokens = tokens
        self._opened.append((self._clock(), tokens()))
        self._telemetry.admitted()

    def ask_aside(self, seat: Seat, prompt: int, answer: int) -> None:
        """As ``AskAside``, for the seat's call. What its open questions hold is part of the call's tokens."""
        self._require_short_queue()
        beat = self._beat()
        if beat is None:
            return
        need = -(-(prompt + answer) // self._page_tokens)
        own = self._committed(self._tenants[seat.tenant].seats)
        budget = _Budget(self._total(beat), self._used(beat), own, need)
        if budget.exhausted:
            message = f"the question needs {need} pages, and {budget.used} of {budget.total:.0f} are promised"
            again = ASIDE_AGAIN_S if need <= budget.total else None
            raise Problem(Reason.PAGES_COMMITTED, message, retry_after_s=again)
        self._require_share(budget, seat.tenant, "pages")
        self._opened.append((self._clock(), prompt))

    def leave(self, seat: Seat) -> None:
        """As ``Seat.leave``."""
        tenant = self._tenants.get(seat.tenant)
        if tenant is None or seat not in tenant.seats:
            return
        tenant.seats.discard(seat)
        if seat.tokens is not None:
            tenant.departures.ended(self._clock())
            self._departures.ended(self._clock())
        if not tenant.seats:
            del self._tenants[seat.tenant]

    @contextlib.contextmanager
    def _told(self, tenant: str) -> Iterator[None]:
        """Whoever is refused within is counted, and wants its share until it would have come back twice, if it may have
        more at all.
        """
        try:
            yield
        except Problem as problem:
            self._telemetry.refused(problem.reason.value)
            if problem.retry_after_s is not None and problem.reason is not Reason.TENANT_TOO_MANY_CALLS:
                self._wanting[tenant] = self._clock() + 2 * problem.retry_after_s
            raise

    def _require_seat(self, name: str, elsewhere: int) -> None:
        """Room among the calls, the tenant's and all. elsewhere: of the tenant's, which count for its limit only."""
        if (why := self._no_seat(name, elsewhere)) is not None:
            raise self._refusal(*why)

    def _no_seat(self, name: str, elsewhere: int, without: str | None = None) -> _Why | None:
        """Why there is no place for one more call of the tenant; None where there is one. without: as if a call of that
        tenant had ended.
        """
        tenant, used = self._tenants.get(name), self.seats - (without is not None)
        own = (0 if tenant is None else len(tenant.seats)) - (without == name)
        limit = self._max_calls(name)
        if limit is not None and own + elsewhere >= limit:
            message = f"{own + elsewhere} calls of this tenant are open, of at most {limit}"
            return Reason.TENANT_TOO_MANY_CALLS, message, tenant
        budget = _Budget(self._config.max_calls, used, own, 1)
        if budget.exhausted:
            return Reason.TOO_MANY_CALLS, f"{used} calls are open", None
        return self._above_share(budget, name, "calls")

    def _calls_elsewhere(self, tenant: str, resumed: bool) -> int:
        """resumed: as in ``take``."""
        return 0 if resumed or self._elsewhere is None else self._elsewhere.calls_elsewhere(tenant)

    def _max_calls(self, tenant: str) -> int | None:
        own = self._limits.get(tenant)
        return self._config.max_calls_per_tenant if own is None or own.max_calls is None else own.max_calls

    def _require_pages(self, seat: Seat, tokens: int) -> None:
        """Room for the call's context and what it will add, beside what the others were promised."""
        beat = self._beat()
        if beat is None:
            return
        tenant = self._tenants[seat.tenant]
        need, total, used = self._pages(tokens), self._total(beat), self._used(beat)
        if need > total:
            message = f"the call needs {need} pages, and there are {beat.pages_total}"
            raise Problem(Reason.PAGES_COMMITTED, message, field="open.items")
        budget = _Budget(total, used, self._committed(tenant.seats), need)
        if budget.exhausted:
            message = f"the call needs {need} pages, and {used} of {total:.0f} are promised"
            raise self._refusal(Reason.PAGES_COMMITTED, message)
        self._require_share(budget, seat.tenant, "pages")

    def _require_share(self, budget: _Budget, name: str, of: str) -> None:
        """Room for the tenant where the machine is nearly full: the last of it is for those below their share."""
        if (why := self._above_share(budget, name, of)) is not None:
            raise self._refusal(*why)

    def _above_share(self, budget: _Budget, name: str, of: str) -> _Why | None:
        now = self._clock()
        self._wanting = {tenant: until for tenant, until in self._wanting.items() if until > now}
        tenants = len({name, *self._tenants, *self._wanting})
        if not budget.above_share(tenants, self._config.fair_share_from):
            return None
        message = f"the tenant has its share of {of} among {tenants} tenants"
        return Reason.TENANT_ABOVE_SHARE, message, self._tenants.get(name)

    def _require_short_queue(self) -> None:
        """Raises Problem where too much waits to be computed."""
        beat, limit = self._beat(), self._config.max_backlog_ms
        if beat is None or limit is None:
            return
        while self._opened and self._opened[0][0] <= beat.at:
            self._opened.popleft()
        wait = beat.backlog_s + beat.token_s * sum(tokens for _, tokens in self._opened)
        if wait * 1000 > limit:
            message = f"what waits to be computed takes {round(wait * 1000)} ms, of at most {limit}"
            excess = min(max(wait - limit / 1000, SOONEST_S), LATEST_S)
            raise Problem(Reason.ENGINE_BUSY, message, retry_after_s=excess)

    def _require_time_for_speech(self) -> None:
        """Raises Problem where the engine may soon not keep up with all who speak."""
        beat, limit = self._beat(), self._config.max_speech_load
        if beat is None or limit is None:
            return
        new = sum(seat.since > beat.at for tenant in self._tenants.values() for seat in tenant.seats)
        # An engine that has nothing to do says nothing more, and what it said last is of a load that is gone.
        age = max(0.0, self._clock() - beat.at)
        spoken = beat.speech_load * math.exp(-age / SMOOTHED_S)
        silent = beat.silent if age < SILENT_S else 0
        load = spoken + beat.voice_load * SPEAKS * (silent + new)
        limit *= RELIEVED if self._saturated else 1.0
        self._saturated = load > limit
        if self._saturated:
            message = f"speech will take {load:.0%} of the engine's time, of at most {limit:.0%}"
            raise self._refusal(Reason.ENGINE_SATURATED, message)

    def _total(self, beat: records.Beat) -> float:
        """Pages that may be promised."""
        return (beat.pages_total + beat.host_pages) * self._config.overcommit

    def _used(self, beat: records.Beat) -> int:
        """Pages that are promised; those in use where they are more: what is not closed yet was promised to nobody."""
        promised = sum(self._committed(tenant.seats) for tenant in self._tenants.values())
        return max(promised, beat.pages_in_use)

    def _committed(self, seats: Iterable[Seat]) -> int:
        """Pages that open calls need."""
        return sum(self._pages(seat.tokens()) for seat in seats if seat.tokens is not None)

    def _pages(self, tokens: int) -> int:
        return -(-(tokens + self._config.reserve_tokens) // self._page_tokens)

    def _refusal(self, reason: Reason, message: str, tenant: _Tenant | None = None) -> Problem:
        """Whose calls must end before there is room: the tenant's, or anybody's."""
        departures = self._departures if tenant is None else tenant.departures
        return Problem(reason, message, retry_after_s=departures.advice(self._clock()))
