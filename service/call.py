"""One call: its client's events in, its own events out. The state machine, without transport.

Every client event is handled to its end before the next one: nothing here awaits. What turns are made of is
``service.turns``'s, how events are numbered and written down ``service.outbound``'s; this module owns how a call
begins, how it is gone on with, and its end.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from service import client_events as events
from service.admission import AskAside
from service.call_clock import CallClock
from service.call_parts import Owner, Parts, Place, put_together
from service.call_services import CallServices
from service.call_state import CallState, Opening
from service.conversation import Conversation
from service.options import Limits
from service.outbound import Send
from service.problems import Problem, Reason, invalid
from service.restoring import restored_reply
from service.server_events import (
    Durability,
    Failure,
    LimitReached,
    Notice,
    ResumeToken,
    ServerEvent,
)
from service.store import CallKey
from service.terms import Terms
from service.turns import Turns

log = logging.getLogger(__name__)

Afterwards = Literal["over", "elsewhere", "forgotten"]
"""What becomes of what the store holds of a call that ends here: it is over, or may go on elsewhere, or is deleted."""

End = Callable[[Problem | None], None]


@dataclass(eq=False)
class Call:
    """The state of one call.

    send: takes each server event at once. end: called once for each client that is there, with the problem that ended
    the call, or took it from this client, or None. metadata: of the stream; may name the trace that the call belongs
    to. admit: given what tells the tokens in use before the call begins; raises Problem where there is no room for it,
    and returns what side questions ask for room. over: called once, when the call has ended here. tenant: whose call it
    is; "" where there are none.
    """

    services: CallServices
    send: Send
    end: End
    metadata: Mapping[str, str] = field(default_factory=dict)
    admit: Callable[[Callable[[], int]], AskAside] = lambda tokens: lambda prompt, answer: None
    over: Callable[[], None] = lambda: None
    tenant: str = ""

    def __post_init__(self) -> None:
        self.key = CallKey(self.tenant, "")
        self.ended = False
        self.attended = True
        """Whether there is a client."""
        self._owner = Owner(
            self.tenant,
            self.metadata,
            self.send,
            self._emit,
            self._turn_over,
            self._finish,
            self._checkpoint,
            self._lost,
            self._durable,
        )
        self._parts: Parts | None = None
        self._closing = False
        self._clock: CallClock | None = None
        self._renew_at = 0.0
        self._call_off: Callable[[], None] = lambda: None

    @property
    def session(self) -> str:
        """Its name; empty before it is open."""
        return self.key.session

    @property
    def turns(self) -> Turns | None:
        """Its turns; None before it is open."""
        return None if self._parts is None else self._parts.turns

    @property
    def opened_at(self) -> float:
        """Seconds since 1970, wherever it was opened; 0 before it is open."""
        return 0.0 if self._parts is None else self._parts.opening.opened_at

    @property
    def generation(self) -> int:
        """Of the lease; 0 before it is open."""
        return 0 if self._parts is None else self._parts.outbound.generation

    def handle(self, client_seq: int, event: events.ClientEvent) -> None:
        """Take one client event. ``client_seq``: 0 for unnumbered; one that was seen before is dropped."""
        if self.ended:
            return
        parts = self._parts
        try:
            if parts is None:
                self._begin(event)
            elif not 0 < client_seq <= parts.outbound.client_seq:
                if self._clock is not None and not isinstance(event, events.Acknowledge):
                    self._clock.heard()
                with parts.outbound.handling(client_seq):
                    self._handle(parts, client_seq, event)
        except Problem as problem:
            self._finish(problem)
        except Exception:
            log.exception("client event failed", extra={"session": self.session, "event": type(event).__name__})
            self._finish(Problem(Reason.INTERNAL, "the service failed on this event"))

    def no_more_events(self) -> None:
        """The client has said all it will: the call ends with the reply in progress, if there is one."""
        self._closing = True
        self._turn_over()

    def disconnect(self) -> None:
        """The client is gone for good: whatever is being generated stops, and the pages return. Idempotent."""
        self._finish(None, "elsewhere")

    def detach(self, end: End) -> None:
        """The stream of the client with this ``end`` broke. The call is kept warm for a while: it may come back."""
        if self.ended or not self.serves(end):
            return
        if self._parts is None or not self.services.resume.keep_s:
            self.disconnect()
            return
        self.attended = self._closing = False
        self._parts.outbound.pause()
        self.hold(False)
        self.end = lambda problem: None
        self._call_off = self.services.later(self.services.resume.keep_s, self.disconnect)
        log.info("client gone", extra={"session": self.session, "kept_s": self.services.resume.keep_s})

    def attach(self, send: Send, end: End, resume: events.Resume) -> bool:
        """Go on with a client that comes back, if it can be told all that it has missed; whether it can."""
        parts = self._parts
        stale = self.ended or parts is None or resume.last_generation > parts.outbound.generation
        if stale or parts is None or not parts.outbound.covers(resume.last_seq):
            return False
        self._call_off()
        self.end(Problem(Reason.MOVED, "the client has come back on another stream"))
        self.hold(False)
        self.end, self.attended, self._closing = end, True, False
        parts.outbound.acknowledge(resume.last_seq)
        missed = parts.outbound.unread(resume.last_seq)
        parts.outbound.replay(send, parts.opened(self.services, self._token(parts), missed), resume.last_seq)
        log.info("client back", extra={"session": self.session, "replayed": len(missed)})
        return True

    def serves(self, end: End) -> bool:
        """Whether the stream with this ``end`` is the one that its client is on."""
        return self.end == end

    def notify(self, notice: Notice) -> None:
        """Tell the client something that ends nothing."""
        if not self.ended and self._parts is not None:
            self._emit(notice)

    def hold(self, held: bool) -> None:
        """Whether the client is too far behind: replies stand still until it has caught up."""
        if not self.ended and (parts := self._parts) is not None:
            parts.turns.hold(held)
            parts.reporter.hold(held)

    def abandon(self, problem: Problem, afterwards: Afterwards = "over") -> None:
        """End the call for a reason of the service's own."""
        self._finish(problem, afterwards)

    @property
    def quiet(self) -> bool:
        """Whether nothing is being said or waited for."""
        return self._parts is None or not self._parts.reporter.busy

    # How a call begins

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
        key = CallKey(self.tenant, event.session_id or f"call-{secrets.token_hex(8)}")
        if key in services.live:
            raise Problem(Reason.SESSION_EXISTS, "a call of this name is open", field="open.session_id")
        ask_aside = self.admit(lambda: self._tokens(conversation))
        seed = secrets.randbits(62) if event.seed is None else event.seed
        # What it said stands in the history and before it, and is written down as that.
        opened = replace(event, session_id=key.session, seed=seed, system="", items=())
        opening = Opening(opened, services.model, time.time())
        parts = self._open(put_together(services, self._owner, key, opening, terms, conversation, ask_aside))
        parts.turns.start(seed)
        whose = {"tenant": self.tenant} if self.tenant else {}
        log.info("call opened", extra={"session": self.session, "tokens": conversation.length, **whose})
        self._emit(parts.opened(services, self._token(parts)))
        parts.reporter.announce()
        self._start_clock(parts, 0.0)

    def restore(self, state: CallState, generation: int, last_seq: int, stored: int) -> Problem | None:
        """Go on with a call that was written down, in place of ``handle``'s first event. Returns the problem that it
        ends with where this server cannot.

        generation: of the lease. last_seq: the last event that its client has. stored: the last that the store has.
        """
        try:
            self._restore(state, generation, last_seq, stored)
            return None
        except Problem as problem:
            failed = problem
        except Exception:
            log.exception("a call could not be restored", extra={"session": self.session})
            failed = Problem(Reason.INTERNAL, "the service failed on this call")
        self._finish(failed, "elsewhere")
        return failed

    def _restore(self, state: CallState, generation: int, last_seq: int, stored: int) -> None:
        """Raises Problem where this server cannot."""
        services, opening, status = self.services, state.opening, state.status
        event = opening.event
        if opening.model != services.model:
            message = f"the call is of {opening.model}, which is not served here"
            raise Problem(Reason.UNKNOWN_MODEL, message, field="open.resume")
        conversation = services.restored_conversation(state)
        ask_aside = self.admit(lambda: self._tokens(conversation))
        terms = Terms.of(event, services.config, conversation.vocab_size, services.max_context_tokens)
        terms.generation, terms.tools = status.generation, status.tools
        key = CallKey(self.tenant, event.session_id)
        place = Place(generation, last_seq, stored, state.client_seq)
        parts = self._open(put_together(services, self._owner, key, opening, terms, conversation, ask_aside, place))
        parts.history.restore(status.version, status.submissions)
        parts.turns.start(event.seed or 0)
        replies = [restored_reply(reply, parts.history) for reply in state.replies]
        parts.turns.restore(state, replies)
        parts.outbound.greet(parts.opened(services, self._token(parts), []), last_seq)
        # Nothing is said before all is as it was: whatever is, is written down with the whole call.
        parts.questions.restore(state.asked, status.questions)
        untold = [reply for reply, was in zip(replies, state.replies, strict=True) if not was.told]
        parts.reporter.restore(status.announced, untold)
        parts.turns.go_on()
        if services.store.keeps and not stored and parts.outbound.seq == last_seq:
            # It says nothing, and the store has nothing of it: that hears here whose the call is.
            parts.log.append(*parts.outbound.checkpoint())
        log.info("call taken over", extra={"session": self.session, "generation": generation, "seq": last_seq})
        self._start_clock(parts, max(0.0, time.time() - opening.opened_at))

    def _open(self, parts: Parts) -> Parts:
        """From here on there is a call, of this name."""
        self.key, self._parts = parts.key, parts
        self.services.live[parts.key] = self
        return parts

    def _tokens(self, conversation: Conversation) -> int:
        """In use, with what is generated aside."""
        parts = self._parts
        return conversation.length + (0 if parts is None else parts.tokens_aside)

    def _start_clock(self, parts: Parts, elapsed_s: float) -> None:
        limits: Limits = parts.terms.limits
        self._clock = CallClock(limits, self.services.later, lambda: parts.reporter.busy, self._out_of_time, elapsed_s)

    def _token(self, parts: Parts) -> ResumeToken:
        signing = self.services.signing
        self._renew_at = time.monotonic() + signing.token_ttl_s / 2
        return ResumeToken(signing.token(parts.key, parts.opening.opened_at), signing.token_ttl_s)

    # How it goes on

    def _handle(self, parts: Parts, client_seq: int, event: events.ClientEvent) -> None:
        try:
            self._dispatch(parts, event)
        except Problem as problem:
            self._refuse(parts, problem, event, client_seq)
        if not self.ended and time.monotonic() > self._renew_at:
            self._emit(self._token(parts))

    def _dispatch(self, parts: Parts, event: events.ClientEvent) -> None:
        turns, questions = parts.turns, parts.questions
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
                if not parts.outbound.acknowledge(event.seq):
                    raise invalid("acknowledge.seq", f"is above {parts.outbound.seq}, the last that was sent")
            case events.SpeechStarted():
                turns.speech_started()
            case events.Respond():
                turns.respond(event)
            case events.Say():
                turns.say(event)
            case events.CloseCall():
                self._finish(None, "forgotten" if event.forget else "over")
            case events.Open() | events.Resume():
                raise Problem(Reason.ALREADY_OPEN, "the call is open already")
            case events.Malformed():
                raise event.problem

    def _refuse(self, parts: Parts, problem: Problem, event: events.ClientEvent, client_seq: int) -> None:
        """Say what was wrong with an event that changed nothing, or no more than was told before. A turn that runs is
        not its turn: it goes on.
        """
        turn_id = getattr(event, "turn_id", 0)
        begun = turn_id <= parts.turns.last_turn
        request_id = getattr(event, "request_id", 0)
        self._emit(Failure(problem, None if begun else turn_id, client_seq, request_id))
        if problem.reached is not None:
            self._emit(LimitReached(*problem.reached))

    def _turn_over(self) -> None:
        if self.ended:
            return
        if self._clock is not None:
            self._clock.heard()
        parts = self._parts
        asked = parts is not None and parts.questions.busy
        if self._closing and not asked and (parts is None or not parts.reporter.speaking):
            self._finish(None)

    def _emit(self, event: ServerEvent) -> int:
        assert self._parts is not None
        return self._parts.outbound.emit(event)

    # What the store says

    def _checkpoint(self) -> tuple[int, bytes]:
        assert self._parts is not None
        return self._parts.outbound.checkpoint()

    def _durable(self, durable: bool) -> None:
        self.notify(Durability(durable))

    def _lost(self, taken_over: bool) -> None:
        """Another server has the call: nothing more of it may be said here."""
        if taken_over:
            self._finish(Problem(Reason.MOVED, "another server has taken the call over"), "elsewhere")
        else:
            problem = Problem(Reason.SESSION_EXISTS, "a call of this name is open", field="open.session_id")
            self._finish(problem, "elsewhere")

    # Its end

    def _out_of_time(self, problem: Problem) -> None:
        """A guardrail ends the call, which says so before."""
        assert problem.reached is not None
        self._emit(LimitReached(*problem.reached))
        self._finish(problem)

    def _finish(self, problem: Problem | None, afterwards: Afterwards = "over") -> None:
        if self.ended:
            return
        self.ended = True
        self._call_off()
        if self._clock is not None:
            self._clock.close()
        cause = "closed" if problem is None else problem.reason.value
        if (parts := self._parts) is not None:
            parts.outbound.flush()
            parts.questions.close()
            parts.turns.close("" if problem is None else cause)
            if afterwards == "elsewhere":
                parts.log.leave()
            else:
                parts.log.close(forget=afterwards == "forgotten")
            if self.services.live.get(self.key) is self:
                del self.services.live[self.key]
        log.info("call ended", extra={"session": self.session, "cause": cause})
        self.over()
        self.end(problem)
