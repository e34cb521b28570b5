"""Client events that are mostly as they should be: those of one call, in whatever order they are asked for."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import conversation_pb2 as conversation_pb
from firstword.v1 import options_pb2 as options_pb

CANARY = "zanzibarquux"
"""In much of what callers say. No error may repeat it."""

TEXTS = (
    "Hello?",
    f"I would like to speak to {CANARY}, please.",
    "When do you open on Saturday?",
    "  yes  ",
    "Grüß Gott, 👋🏽 ist da jemand?",
    "no",
    f"{CANARY} " * 20,
)
SCHEMAS = (
    "",
    '{"type": "object", "properties": {}, "additionalProperties": false}',
    '{"type": "object", "properties": {"day": {"enum": ["mon", "tue"]}}, "required": ["day"]}',
    '{"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["n"]}',
)
TOOL_NAMES = ("hang_up", "book", "look_up")
SYSTEM = "You answer the phone."


class Events:
    """Makes them, with numbers that grow as they should, but for now and then.

    turn: the newest that was named.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._seq = 0
        self._revision = 0
        self._request_id = 0
        self.turn = 0

    def open(self) -> call_pb.CallRequest:
        rng = self._rng
        opening = client_pb.Open(
            system_prompt=rng.choice(("", SYSTEM, SYSTEM)), items=self._items(rng.choice((0, 0, 2)))
        )
        if rng.random() < 0.5:
            opening.tools.extend(self._tools(rng.choice((1, 2))))
        if rng.random() < 0.2:
            opening.session_id = f"call-{rng.randrange(8)}"
        if rng.random() < 0.5:
            opening.seed = rng.choice((0, 7, 2**62, 2**64 - 1))
        if rng.random() < 0.3:
            opening.sampling.CopyFrom(self._sampling(seed=False))
        if rng.random() < 0.2:
            opening.limits.CopyFrom(self._limits())
        if rng.random() < 0.2:
            opening.context_policy.action = rng.randrange(4)
            opening.context_policy.keep_tokens = rng.choice((0, 20, 100))
            opening.context_policy.announce_at_tokens = rng.choice((0, 20, 100))
        if rng.random() < 0.15:
            opening.first_token_deadline_ms = rng.choice((1, 20))
            opening.fallbacks.add(phrase="One moment, please.")
        if rng.random() < 0.2:
            opening.answer_ahead.match_rule = options_pb.MATCH_RULE_NORMALISED_TEXT
        if rng.random() < 0.1:
            opening.response_format.json_schema = rng.choice(SCHEMAS)
        opening.progress_notices = rng.random() < 0.3
        return self._numbered(open=opening)

    def next(self) -> call_pb.CallRequest:
        """Any event that may follow."""
        (make,) = self._rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
        return make(self)

    def commits(self) -> call_pb.CallRequest:
        """One that begins a turn."""
        return self._rng.choice((Events._final, Events._final, Events._final, Events._respond))(self)

    # One each

    def _partial(self) -> call_pb.CallRequest:
        self._revision += 1
        text = self._text()
        partial = client_pb.Partial(turn_id=self._coming(), revision=self._number(self._revision), text=text)
        if self._rng.random() < 0.3:
            partial.stable_code_points = self._rng.randrange(len(text) + 1)
        return self._numbered(partial=partial)

    def _eager(self) -> call_pb.CallRequest:
        self._revision += 1
        eager = client_pb.EagerEndOfTurn(turn_id=self._coming(), revision=self._revision, text=self._text())
        return self._numbered(eager_end_of_turn=eager)

    def _turn_resumed(self) -> call_pb.CallRequest:
        return self._numbered(turn_resumed=client_pb.TurnResumed(turn_id=self._coming()))

    def _final(self) -> call_pb.CallRequest:
        final = client_pb.Final(turn_id=self._begun(), text=self._text(), item_id=self._item_id())
        if self._rng.random() < 0.6:
            final.options.CopyFrom(self._options())
        return self._numbered(final=final)

    def _respond(self) -> call_pb.CallRequest:
        return self._numbered(respond=client_pb.Respond(turn_id=self._begun(), options=self._options()))

    def _say(self) -> call_pb.CallRequest:
        return self._numbered(say=client_pb.Say(turn_id=self._begun(), text=self._text(), item_id=self._item_id()))

    def _interrupt(self) -> call_pb.CallRequest:
        interrupt = client_pb.Interrupt(turn_id=self._known())
        if self._rng.random() < 0.7:
            interrupt.heard.CopyFrom(self._heard())
        return self._numbered(interrupt=interrupt)

    def _playback(self) -> call_pb.CallRequest:
        return self._numbered(playback_progress=client_pb.PlaybackProgress(turn_id=self._known(), heard=self._heard()))

    def tool_result(self) -> call_pb.CallRequest:
        rng = self._rng
        result = client_pb.ToolResult(
            turn_id=self._known(), call_id=rng.choice(("call_1", "nobody")), output='{"ok": 1}'
        )
        result.is_error, result.no_reply = rng.random() < 0.2, rng.random() < 0.2
        result.item_id = self._item_id()
        return self._numbered(tool_result=result)

    def _acknowledge(self) -> call_pb.CallRequest:
        return self._numbered(acknowledge=client_pb.Acknowledge(seq=self._rng.choice((0, 1, 2, 5, 1000))))

    def _speech_started(self) -> call_pb.CallRequest:
        return self._numbered(speech_started=client_pb.SpeechStarted())

    def _items_event(self) -> call_pb.CallRequest:
        items = client_pb.Items(items=self._items(self._rng.choice((0, 1, 2, 4))))
        if self._rng.random() < 0.3:
            items.history_version = self._rng.randrange(6)
        return self._numbered(items=items)

    def _update(self) -> call_pb.CallRequest:
        rng, update = self._rng, client_pb.Update()
        if rng.random() < 0.6:
            update.system_prompt = rng.choice(("", SYSTEM, "Be short."))
        if rng.random() < 0.4:
            update.tools.tools.extend(self._tools(rng.choice((0, 1, 2))))
        if rng.random() < 0.3:
            update.sampling.CopyFrom(self._sampling(seed=False))
        return self._numbered(update=update)

    def _generate(self) -> call_pb.CallRequest:
        rng = self._rng
        self._request_id += rng.choice((0, 1, 1, 1))
        generate = client_pb.Generate(request_id=self._number(max(1, self._request_id)), sampling=self._sampling())
        if rng.random() < 0.6:
            generate.question = self._text()
        else:
            generate.conversation.items.extend(self._items(2))
        if rng.random() < 0.3:
            generate.timeout_ms = rng.choice((1, 20, 5000))
        if rng.random() < 0.1:
            generate.response_format.json_schema = rng.choice(SCHEMAS)
        return self._numbered(generate=generate)

    def _cancel_generate(self) -> call_pb.CallRequest:
        return self._numbered(cancel_generate=client_pb.CancelGenerate(request_id=self._number(self._request_id)))

    def _close(self) -> call_pb.CallRequest:
        return self._numbered(close=client_pb.Close(forget=self._rng.random() < 0.5))

    # Numbers

    def _numbered(self, **event: Any) -> call_pb.CallRequest:
        rng = self._rng
        if rng.random() < 0.9:
            self._seq += 1
        number = self._seq if rng.random() < 0.95 else rng.choice((0, 1, self._seq + 100, 2**63))
        return call_pb.CallRequest(client_seq=number, **event)

    def _number(self, right: int) -> int:
        """The right one, most of the time."""
        if self._rng.random() < 0.95:
            return right
        return max(0, self._rng.choice((0, 1, right - 1, right + 1, right + 1000, 2**64 - 1)))

    def _coming(self) -> int:
        """Of the turn that is not committed yet."""
        return self._number(self.turn + 1)

    def _begun(self) -> int:
        """Of a turn that this event begins."""
        found = self._number(self.turn + 1)
        if found < 2**63:
            self.turn = max(self.turn, found)
        return found

    def _known(self) -> int:
        return self._number(max(1, self.turn))

    # What is in them

    def _text(self) -> str:
        return self._rng.choice(TEXTS)

    def _item_id(self) -> str:
        return self._rng.choice(("", "", "", f"item-{self._rng.randrange(5)}"))

    def _sampling(self, *, seed: bool = True) -> options_pb.Sampling:
        rng = self._rng
        sampling = options_pb.Sampling(max_output_tokens=rng.choice((1, 2, 4, 8, 12)))
        if rng.random() < 0.5:
            sampling.temperature = rng.choice((0.0, 0.7, 1.0, 3.0))
        if rng.random() < 0.2:
            sampling.top_k = rng.choice((0, 1, 40, 5000))
        if rng.random() < 0.2:
            sampling.top_p = rng.choice((0.1, 0.9, 1.0))
        if rng.random() < 0.1:
            sampling.repetition_penalty = rng.choice((0.5, 1.0, 1.3))
        if rng.random() < 0.2:
            sampling.stop_strings.extend(rng.sample(("e", ".", "th", " ", "\n"), 2))
        if rng.random() < 0.1:
            sampling.stop_token_ids.append(rng.randrange(2048))
        if seed and rng.random() < 0.2:
            sampling.seed = rng.choice((0, 1, 2**63, 2**64 - 1))
        return sampling

    def _options(self) -> options_pb.TurnOptions:
        rng = self._rng
        options = options_pb.TurnOptions(sampling=self._sampling())
        if rng.random() < 0.15:
            options.tool_choice.tool_name = rng.choice(TOOL_NAMES)
            options.sampling.max_output_tokens = rng.choice((4, 40))
        if rng.random() < 0.05:
            options.tool_choice.mode = rng.randrange(4)
        if rng.random() < 0.05:
            options.first_token_deadline_ms = rng.choice((1, 1000))
        if rng.random() < 0.05:
            options.response_format.json_schema = rng.choice(SCHEMAS)
        if rng.random() < 0.1:
            options.drafting_mode = "plain"
        return options

    def _limits(self) -> options_pb.Limits:
        rng = self._rng
        limits = options_pb.Limits()
        for name, values in (
            ("max_tool_calls_per_turn", (0, 1)),
            ("max_tool_calls_per_call", (0, 1)),
            ("max_output_tokens_per_turn", (1, 6)),
            ("max_turns", (0, 1, 3)),
            ("max_call_ms", (1, 50)),
            ("max_idle_ms", (1, 50)),
            ("max_input_code_points", (0, 30)),
            ("tool_timeout_ms", (1, 50)),
        ):
            if rng.random() < 0.25:
                setattr(limits, name, rng.choice(values))
        return limits

    def _tools(self, count: int) -> list[conversation_pb.Tool]:
        rng = self._rng
        return [
            conversation_pb.Tool(name=name, description="Does it.", parameters_json_schema=rng.choice(SCHEMAS))
            for name in TOOL_NAMES[:count]
        ]

    def _items(self, count: int) -> list[conversation_pb.Item]:
        rng, found = self._rng, []
        for index in range(count):
            role = conversation_pb.ROLE_ASSISTANT if index % 2 else conversation_pb.ROLE_USER
            message = conversation_pb.Message(role=role, text=self._text())
            message.interrupted = bool(index % 2) and rng.random() < 0.2
            found.append(conversation_pb.Item(item_id=self._item_id() if index == 0 else "", message=message))
        if count and rng.random() < 0.2:
            call = conversation_pb.ToolCall(call_id="call_9", name=TOOL_NAMES[0], arguments_json="{}")
            found.append(conversation_pb.Item(tool_call=call))
            found.append(conversation_pb.Item(tool_output=conversation_pb.ToolOutput(call_id="call_9", output="ok")))
        return found

    def _heard(self) -> client_pb.Heard:
        rng, heard = self._rng, client_pb.Heard()
        match rng.randrange(4):
            case 0:
                heard.text = rng.choice(("", "the", "One moment", self._text()))
            case 1:
                heard.played_ms = rng.choice((0, 100, 10**6))
            case _:
                heard.code_points = rng.choice((0, 1, 5, 20, 10**6))
        for at in range(rng.choice((0, 0, 0, 3))):
            heard.words.add(end_ms=100 * at, end_code_points=rng.choice((at, 4 * at, 0)))
        return heard


_WEIGHTS: dict[Callable[[Events], call_pb.CallRequest], float] = {
    Events._partial: 4,
    Events._eager: 2,
    Events._turn_resumed: 1,
    Events._final: 3,
    Events._respond: 0.7,
    Events._say: 1,
    Events._interrupt: 2,
    Events._playback: 1,
    Events.tool_result: 2,
    Events._acknowledge: 0.7,
    Events._speech_started: 0.7,
    Events._items_event: 1,
    Events._update: 1,
    Events._generate: 1,
    Events._cancel_generate: 0.7,
    Events._close: 0.1,
    Events.open: 0.2,
}
