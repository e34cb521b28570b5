"""What an open call is made of, and how that is put together: for a call that begins, and for one that is gone on with.

Knows every part and none of what they do. The call itself, in ``service.call``, is told through ``Owner``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from service import client_events as events
from service.admission import AskAside
from service.call_services import CallServices
from service.call_state import Opening
from service.conversation import Conversation
from service.history import History
from service.journal import Journal
from service.outbound import Outbound, Send
from service.problems import Problem, Reason
from service.reply import Phase, Reply
from service.reporter import Reporter
from service.server_events import Opened, ResumeToken, ServerEvent, TextDelta, Unfinished
from service.shadow import Shadow
from service.side_questions import SideQuestions
from service.store import CallKey, CallLog, Ownership
from service.terms import Terms
from service.turns import Turns

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """The call, as its parts know it.

    metadata: of the stream that opened it. send: takes each event that is numbered. emit: numbers one. over: something
    has ended that the call may have waited for. failed: the call cannot go on. checkpoint, lost, durable: as in
    ``Ownership``.
    """

    tenant: str
    metadata: Mapping[str, str]
    send: Send
    emit: Callable[[ServerEvent], int]
    over: Callable[[], None]
    failed: Callable[[Problem], None]
    checkpoint: Callable[[], tuple[int, bytes]]
    lost: Callable[[bool], None]
    durable: Callable[[bool], None]


@dataclass(frozen=True)
class Place:
    """Where a call is gone on with. generation: of the lease. last_seq: the last event that the client has; stored: the
    last that the store has. client_seq: the last of the client's events that was handled.
    """

    generation: int = 1
    last_seq: int = 0
    stored: int = 0
    client_seq: int = 0


@dataclass(eq=False)
class Parts:
    """All of one call."""

    key: CallKey
    opening: Opening
    terms: Terms
    history: History
    reporter: Reporter
    turns: Turns
    questions: SideQuestions
    outbound: Outbound
    log: CallLog

    @property
    def tokens_aside(self) -> int:
        """Of what is generated beside the call's own."""
        return self.questions.tokens + self.turns.tokens_aside

    def opened(self, services: CallServices, token: ResumeToken, missed: Sequence[ServerEvent] | None = None) -> Opened:
        """What its client is told first. missed: what will be replayed behind that to one that comes back; None for one
        that opens the call.
        """
        return Opened(
            session_id=self.key.session,
            model=services.model,
            seed=self.opening.event.seed or 0,
            used_tokens=self.history.length,
            max_context_tokens=services.max_context_tokens,
            generation=self.terms.generation,
            limits=self.terms.limits,
            item_ids=[item.id for item in self.history.items],
            history_version=self.history.version,
            token=token,
            resumed=missed is not None,
            unfinished=None if missed is None else _unfinished(self.turns.reply, missed),
        )


def put_together(
    services: CallServices,
    owner: Owner,
    key: CallKey,
    opening: Opening,
    terms: Terms,
    conversation: Conversation,
    ask_aside: AskAside,
    place: Place | None = None,
) -> Parts:
    """A call with these terms and this conversation, of which the store knows from now on. place: where it is gone on
    with. Raises Problem for a model of the chain of a call that begins which is not served, or cannot hold it.
    """
    shadows = _shadows(services, owner.tenant, key, opening.event, conversation, terms, restored=place is not None)
    place = place or Place()
    recorder = services.telemetry.call(key.session, dict(owner.metadata), owner.tenant, opening.traceparent)
    opening = replace(opening, traceparent=recorder.traceparent)
    history = History(services, key.engine_name, conversation, shadows, owner.tenant)
    reporter = Reporter(key.session, services.model, terms, history, recorder, owner.emit, owner.over)
    turns = Turns(
        key.session,
        terms,
        history,
        reporter,
        services.later,
        opening.event.fallbacks,
        services.engine_serving,
        ask_aside,
        owner.failed,
    )
    questions = SideQuestions(services, terms, history, recorder, ask_aside, owner.emit, owner.over)
    caller, kept = opening.event.caller_key, (owner.checkpoint, owner.lost, owner.durable)
    owned = Ownership(place.generation, place.last_seq, place.stored, caller, *kept, opening.opened_at)
    log = services.store.begin(key, owned)
    outbound = Outbound(
        key,
        services.signing,
        Journal(opening, terms, history, turns, reporter, questions),
        log,
        owner.send,
        opened_at=opening.opened_at,
        generation=place.generation,
        base=place.last_seq,
        client_seq=place.client_seq,
        replay_events=services.config.replay_events,
    )
    return Parts(key, opening, terms, history, reporter, turns, questions, outbound, log)


def _shadows(
    services: CallServices,
    tenant: str,
    key: CallKey,
    event: events.Open,
    conversation: Conversation,
    terms: Terms,
    *,
    restored: bool,
) -> dict[str, Shadow]:
    """The call at each model of its chain. Raises Problem for one that is not served, or cannot hold the call; one that
    was restored goes on without those.
    """
    shadows: dict[str, Shadow] = {}

    def shadow(model: str, field: str) -> Shadow:
        resident = services.residents.get(model)
        if resident is None:
            raise Problem(Reason.UNKNOWN_MODEL, f"{model} is no fallback here", field=field)
        content, generation, seed = conversation.content, terms.generation, event.seed or 0
        return Shadow(resident, key.engine_name, seed, content, generation, field, tenant)

    try:
        for at, link in enumerate(event.fallbacks):
            path = f"open.fallbacks[{at}]"
            terms.check_input(link.phrase, f"{path}.phrase")
            if not link.model or link.model in shadows:
                continue
            try:
                shadows[link.model] = shadow(link.model, f"{path}.model")
            except Problem as problem:
                if not restored:
                    raise
                log.warning("a call goes on without a fallback", extra={"model": link.model, "cause": str(problem)})
    except Problem:
        for opened in shadows.values():
            opened.close()
        raise
    return shadows


def _unfinished(reply: Reply | None, missed: Sequence[ServerEvent]) -> Unfinished | None:
    """The turn that goes on, of a call whose newest reply this is. missed: events that the client will have of it."""
    texts = [event for event in missed if isinstance(event, TextDelta)]
    if reply is None or (reply.phase is Phase.OVER and not any(event.turn_id == reply.turn_id for event in texts)):
        return None
    chars = next((event.offset for event in texts if event.turn_id == reply.turn_id), len(reply.text))
    return Unfinished(reply.turn_id, chars, tuple(call.call_id for call in reply.outstanding))
