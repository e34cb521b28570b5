"""One call: its client's events in, its own events out, numbered. The state machine, without transport.

Every client event is handled to its end before the next one: nothing here awaits. What turns are made of is
``service.turns``'s; this module owns the open event, the order of events, and the end of the call.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from service import client_events as events
from service.call_clock import CallClock
from service.call_services import CallServices
from service.conversation import Conversation
from service.history import History
from service.problems import Problem, Reason, invalid
from service.reporter import Reporter
from service.server_events import Envelope, Failure, LimitReached, Notice, Opened, ServerEvent
from service.shadow import Shadow
from service.side_questions import SideQuestions
from service.terms import Terms
from service.turns import Turns

log = logging.getLogger(__name__)

GENERATION = 1
"""Of the lease on a call. One process holds every call that it serves for as long as it lives."""


@dataclass(eq=False)
class Call:
    """The state of one call.

    send: takes each server event at once. end: called once, with the problem that ended the call or None.
    metadata: of the stream; may name the trace that the call belongs to. admit: given what tells the length of the
    context before the call begins; raises Problem where there is no room for it. tenant: whose call it is.
    """

    services: CallServices
    send: Callable[[Envelope], None]
    end: Callable[[Problem | None], None]
    metadata: dict[str, str] = field(default_factory=dict)
    admit: Callable[[Callable[[], int]], None] = lambda tokens: None
    tenant: str = ""

    def __post_init__(self) -> None:
        self.session = ""
        self.ended = False
        self._seq = 0
        self._client_seq = 0
        self._replay: deque[Envelope] = deque(maxlen=self.services.config.replay_events)
        self._turns: Turns | None = None
        self._reporter: Reporter | None = None
        self._questions: SideQuestions | None = None
        self._closing = False
        self._clock: CallClock | None = None

    def handle(self, client_seq: int, event: events.ClientEvent) -> None:
        """Take one client event. ``client_seq``: 0 for unnumbered; one that was seen before is dropped."""
        if self.ended:
            return
        opening = self._turns is None
        if not opening:
            if 0 < client_seq <= self._client_seq:
                return
            self._client_seq = max(self._client_seq, client_seq)
            if self._clock is not None and not isinstance(event, events.Acknowledge):
                self._clock.heard()
        try:
            if self._turns is None or self._questions is None:
                self._begin(event)
            else:
                self._dispatch(self._turns, self._questions, event)
        except Problem as problem:
            if opening:
                self._finish(problem)
            else:
                self._refuse(problem, event, client_seq)
        except Exception:
            log.exception("client event failed", extra={"session": self.session, "event": type(event).__name__})
            self._finish(Problem(Reason.INTERNAL, "the service failed on this event"))

    def no_more_events(self) -> None:
        """The client has said all it will: the call ends with the reply in progress, if there is one."""
        self._closing = True
        self._turn_over()

    def disconnect(self) -> None:
        """The client is gone: whatever is being generated stops, and the pages return. Idempotent."""
        self._finish(None)

    def notify(self, notice: Notice) -> None:
        """Tell the client something that ends nothing."""
        if not self.ended and self._turns is not None:
            self._emit(notice)

    def hold(self, held: bool) -> None:
        """Whether the client is too far behind: replies stand still until it has caught up."""
        if not self.ended and self._turns is not None and self._reporter is not None:
            self._turns.hold(held)
            self._reporter.hold(held)

    def abandon(self, problem: Problem) -> None:
        """End the call for a reason of the service's own."""
        self._finish(problem)

    def _begin(self, event: events.ClientEvent) -> None:
        """The first event must open the call. Raises Problem for whatever keeps it from that."""
        if isinstance(event, events.Malformed):
            raise event.problem
        if not isinstance(event, events.Open):
            raise Problem(Reason.NOT_OPEN, "the first event of a call must be open")
        services = self.services
        if event.model not in ("", services.model):
            raise Problem(Reason.UNKNOWN_MODEL, f"{event.model} is not served here", field="open.model")
        conversation = services.new_conversation(event)
        limit = services.max_context_tokens
        if conversation.length >= limit:
            message = f"the conversation has {conversation.length} tokens, of at most {limit}"
            raise Problem(Reason.CONTEXT_FULL, message, field="open.items")
        terms = Terms.of(event, services.config, conversation.vocab_size, limit)
        self.session = event.session_id or f"call-{secrets.token_hex(8)}"
        try:
            services.store.open(self.session)
        except ValueError:
            raise Problem(Reason.SESSION_EXISTS, "a call of this name is open", field="open.session_id") from None
        seed = secrets.randbits(62) if event.seed is None else event.seed
        try:
            self.admit(lambda: conversation.length)
            shadows = self._shadows(event, conversation, terms, seed)
        except Problem:
            services.store.close(self.session)
            raise
        recorder = services.telemetry.call(self.session, self.metadata)
        history = History(services, self.session, conversation, shadows, self.tenant)
        emit, over = self._emit, self._turn_over
        self._reporter = reporter = Reporter(self.session, services.model, terms, history, recorder, emit, over)
        self._turns = turns = Turns(
            self.session,
            terms,
            history,
            reporter,
            services.later,
            event.fallbacks,
            lambda: services.engine.serving,
            self._finish,
        )
        self._questions = SideQuestions(services, terms, history, recorder, emit, over)
        turns.start(seed)
        log.info("call opened", extra={"session": self.session, "tokens": conversation.length})
        self._emit(
            Opened(
                session_id=self.session,
                model=services.model,
                seed=seed,
                used_tokens=conversation.length,
                max_context_tokens=limit,
                generation=terms.generation,
                limits=terms.limits,
                item_ids=conversation.item_ids(),
                history_version=history.version,
            )
        )
        reporter.announce()
        self._clock = CallClock(terms.limits, services.later, lambda: reporter.busy, self._out_of_time)

    def _shadows(self, event: events.Open, conversation: Conversation, terms: Terms, seed: int) -> dict[str, Shadow]:
        """The call at each model of its chain. Raises Problem for one that is not served, or cannot hold the call."""
        shadows: dict[str, Shadow] = {}
        try:
            for at, link in enumerate(event.fallbacks):
                path = f"open.fallbacks[{at}]"
                terms.check_input(link.phrase, f"{path}.phrase")
                if not link.model or link.model in shadows:
                    continue
                resident = self.services.residents.get(link.model)
                if resident is None:
                    raise Problem(Reason.UNKNOWN_MODEL, f"{link.model} is no fallback here", field=f"{path}.model")
                content, generation = conversation.content, terms.generation
                shadows[link.model] = Shadow(
                    resident, self.session, seed, content, generation, f"{path}.model", self.tenant
                )
        except Problem:
            for shadow in shadows.values():
                shadow.close()
            raise
        return shadows

    def _out_of_time(self, problem: Problem) -> None:
        """A guardrail ends the call, which says so before."""
        assert problem.reached is not None
        self._emit(LimitReached(*problem.reached))
        self._finish(problem)

    def _dispatch(self, turns: Turns, questions: SideQuestions, event: events.ClientEvent) -> None:
        match event:
            case events.Partial():
                turns.hear(event)
            case events.EagerEndOfTurn():
                turns.eager(event)
            case events.TurnResumed():
                turns.resume(event)
            case events.Final():
                turns.final(event)
            case events.Playback():
                turns.playback(event)
            case events.Interrupt():
                turns.interrupt(event)
            case events.ToolResult():
                turns.tool_result(event)
            case events.Items():
                turns.items(event)
            case events.Update():
                turns.update(event)
            case events.Generate():
                questions.ask(event)
            case events.CancelGenerate():
                questions.cancel(event)
            case events.Acknowledge():
                self._acknowledge(event.seq)
            case events.SpeechStarted():
                turns.speech_started()
            case events.Respond():
                turns.respond(event)
            case events.Say():
                turns.say(event)
            case events.CloseCall():
                self._finish(None)
            case events.Open():
                raise Problem(Reason.ALREADY_OPEN, "the call is open already")
            case events.Malformed():
                raise event.problem

    def _acknowledge(self, seq: int) -> None:
        if seq > self._seq:
            raise invalid("acknowledge.seq", f"is above {self._seq}, the last that was sent")
        while self._replay and self._replay[0].seq <= seq:
            self._replay.popleft()

    def _refuse(self, problem: Problem, event: events.ClientEvent, client_seq: int) -> None:
        """Say what was wrong with an event that changed nothing. A turn that runs is not its turn: it goes on."""
        turn_id = getattr(event, "turn_id", 0)
        begun = self._turns is None or turn_id <= self._turns.last_turn
        request_id = getattr(event, "request_id", 0)
        self._emit(Failure(problem, None if begun else turn_id, client_seq, request_id))
        if problem.reached is not None:
            self._emit(LimitReached(*problem.reached))

    def _turn_over(self) -> None:
        if self.ended:
            return
        if self._clock is not None:
            self._clock.heard()
        asked = self._questions is not None and self._questions.busy
        if self._closing and not asked and (self._reporter is None or not self._reporter.speaking):
            self._finish(None)

    def _emit(self, event: ServerEvent) -> int:
        """Number an event and send it; returns its number."""
        self._seq += 1
        durable = self.services.store.durable_seq(self.session)
        envelope = Envelope(GENERATION, self._seq, durable, self._client_seq, event)
        self._replay.append(envelope)
        self.send(envelope)
        return self._seq

    def _finish(self, problem: Problem | None) -> None:
        if self.ended:
            return
        self.ended = True
        if self._clock is not None:
            self._clock.close()
        cause = "closed" if problem is None else problem.reason.value
        if self._questions is not None:
            self._questions.close()
        if self._turns is not None:
            self._turns.close("" if problem is None else cause)
            self.services.store.close(self.session)
        log.info("call ended", extra={"session": self.session, "cause": cause})
        self.end(problem)
