"""Side questions on a call: asked of a fork of its history, answered when there is time, and gone without a trace.

Owns the questions that are open. The call's turns and its history know nothing of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from engine import records
from service.admission import AskAside
from service.call_services import CallServices, Record
from service.client_events import CancelGenerate, Generate
from service.history import History
from service.options import Generation
from service.problems import Problem, Reason, engine_problem, generation_problem, invalid
from service.server_events import Failure, Generated, ServerEvent, TurnEnd
from service.telemetry import CallRecorder, TurnRecord
from service.terms import Terms

MOST = 16
"""Questions of one call that may be open at once."""


@dataclass(eq=False)
class _Question:
    """One that waits for its answer. session: of the fork in the engine. tokens: that the fork does not share with the
    call, those of the longest answer included. call_off: of its time-out.
    """

    asked: Generate
    session: str
    account: TurnRecord
    tokens: int = 0
    call_off: Callable[[], None] = lambda: None
    text: list[str] = field(default_factory=list)


class SideQuestions:
    """Of one call. admit: raises Problem where there is no room for one more. emit: sends a server event. on_over:
    called when one has had its answer, or will have none.
    """

    def __init__(
        self,
        services: CallServices,
        terms: Terms,
        history: History,
        recorder: CallRecorder,
        admit: AskAside,
        emit: Callable[[ServerEvent], object],
        on_over: Callable[[], None],
    ) -> None:
        self._services = services
        self._terms = terms
        self._history = history
        self._recorder = recorder
        self._admit = admit
        self._emit = emit
        self._on_over = on_over
        self._open: dict[int, _Question] = {}
        self._asked: dict[int, None] = {}

    @property
    def asked(self) -> Mapping[int, None]:
        """Numbers of all of them, in order."""
        return self._asked

    @property
    def open(self) -> tuple[Generate, ...]:
        """Those that have no answer yet."""
        return tuple(question.asked for question in self._open.values())

    @property
    def tokens(self) -> int:
        """That the open ones will have beside the call's own."""
        return sum(question.tokens for question in self._open.values())

    def restore(self, asked: Iterable[int], open_: Iterable[Generate]) -> None:
        """As they were in a call that was written down: those without an answer are asked again."""
        self._asked = dict.fromkeys(asked)
        for event in open_:
            self._asked.pop(event.request_id, None)
            try:
                self.ask(event)
            except Problem as problem:
                self._asked[event.request_id] = None
                self._emit(Failure(problem, request_id=event.request_id))

    @property
    def busy(self) -> bool:
        return bool(self._open)

    def ask(self, event: Generate) -> None:
        """Begin to answer. Raises Problem for what cannot be asked."""
        number = event.request_id
        if number in self._open:
            return  # the same event, sent again
        if number in self._asked:
            raise invalid("generate.request_id", f"{number} was asked before")
        if len(self._open) >= MOST:
            raise Problem(Reason.TOO_MANY_QUESTIONS, f"{MOST} questions are open", retry_after_s=1.0)
        if event.items is None:
            self._terms.check_input(event.question, "generate.question")
        else:
            self._terms.check_items(event.items, "generate.conversation")
        generation = self._terms.for_question(event.generation)
        name = self._history.generations.new_fork(f"{number}")
        account = TurnRecord(0, time.monotonic(), event.traceparent, event.tracestate, request_id=number)
        account.sampling, account.max_tokens = generation.sampling, generation.max_tokens
        question = _Question(event, name, account)
        self._submit(question, generation)
        self._asked[number] = None
        self._open[number] = question
        if event.timeout_ms is not None:
            question.call_off = self._services.later(event.timeout_ms / 1000, partial(self._expire, question))

    def cancel(self, event: CancelGenerate) -> None:
        """Drop a question, if it is open."""
        if (question := self._open.get(event.request_id)) is not None:
            self._fail(question, Problem(Reason.CANCELLED, "the question was dropped"))

    def close(self) -> None:
        """The call is over: nobody waits for an answer."""
        for question in list(self._open.values()):
            self._forget(question)

    def _submit(self, question: _Question, generation: Generation) -> None:
        asked, sink = question.asked, partial(self._on_record, question)
        question.tokens = self._history.generations.ask_aside(question.session, asked, generation, sink, self._admit)

    def _on_record(self, question: _Question, record: Record) -> None:
        if self._open.get(question.asked.request_id) is not question:
            return
        match record:
            case records.Progress():
                question.account.output_tokens += len(record.tokens)
                if record.text:
                    question.text.append(record.text)
                    question.account.first_text = question.account.first_text or time.monotonic()
            case records.Ended():
                self._ended(question, record)
            case records.Failed():
                self._fail(question, engine_problem(record.reason, record.message))

    def _ended(self, question: _Question, record: records.Ended) -> None:
        account = question.account
        account.stats.append(record.stats)
        account.finish, account.output_tokens = record.finish, record.reply_tokens
        problem = generation_problem(record.finish, record.error)
        if problem is not None:
            self._fail(question, problem)
            return
        reason = TurnEnd.of(record.finish)
        self._forget(question)
        self._emit(Generated(question.asked.request_id, "".join(question.text), reason, self._services.model, account))
        self._on_over()

    def _expire(self, question: _Question) -> None:
        message = f"no answer within {question.asked.timeout_ms} ms"
        self._fail(question, Problem(Reason.QUESTION_TIMED_OUT, message))

    def _fail(self, question: _Question, problem: Problem) -> None:
        question.account.error = problem.reason.value
        self._forget(question)
        self._emit(Failure(problem, request_id=question.asked.request_id))
        self._on_over()

    def _forget(self, question: _Question) -> None:
        """The fork's pages return."""
        del self._open[question.asked.request_id]
        question.call_off()
        self._history.generations.close_fork(question.session)
        question.account.ended = time.monotonic()
        self._recorder.question(question.account)
