"""Tool calls held to schemas that the model never saw: whether they validate, whether drafting changes them, what it
costs.

`python -m evals.constrained_calls [--calls N] [--temperature T]`. Every call is required, sampled, and checked with
`jsonschema`, which shares nothing with what held it to its schema. The model is the embedded one: it understands none
of these tools, so all that makes a call valid is the grammar.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jsonschema import Draft202012Validator
from torch import Tensor

from bench import harness
from engine.config import EngineConfig
from engine.constraint import ToolConstraint
from engine.engine import Engine, Work
from engine.grammar.library import GrammarLibrary
from engine.interfaces import Grammar
from engine.load import load_proposer, load_target_for, measured_engine
from engine.sampling import Sampling
from engine.session import Finish
from engine.text.chat import Chat
from engine.text.codec import Codec
from engine.text.reply import ReplyReader
from engine.tree import DraftTree
from training.dialogues import Split, dialogue

FIRST_SEED = 80_000_000
MAX_TOKENS = 256
MAY_BE_CUT = 0.01
"""Of the calls: by the length of a reply."""
MAY_COST = 0.15
"""Of a step's time: the grammar."""
SHORT = {"type": "string", "maxLength": 24}
ADDRESS = {
    "type": "object",
    "properties": {"street": SHORT, "number": {"type": "integer", "minimum": 1, "maximum": 9999}, "city": SHORT},
    "required": ["street", "city"],
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "book_table": {
        "type": "object",
        "properties": {
            "guests": {"type": "integer", "minimum": 1, "maximum": 12},
            "area": {"enum": ["inside", "terrace", "bar"]},
            "time": {"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"},
            "notes": {"type": "array", "items": SHORT, "maxItems": 3},
        },
        "required": ["guests", "area", "time"],
    },
    "order_parts": {
        "type": "object",
        "properties": {
            "lines": {
                "type": "array",
                "minItems": 1,
                "maxItems": 3,
                "items": {
                    "type": "object",
                    "properties": {
                        "part": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
                        "count": {"type": "integer", "minimum": 1, "maximum": 500},
                        "price": {"type": "number", "minimum": 0, "maximum": 1000, "multipleOf": 0.25},
                    },
                    "required": ["part", "count"],
                },
            },
            "deliver_to": ADDRESS,
            "express": {"type": "boolean"},
        },
        "required": ["lines", "deliver_to", "express"],
    },
    "set_thermostat": {
        "type": "object",
        "properties": {
            "degrees": {"type": "number", "minimum": 5, "maximum": 30, "multipleOf": 0.5},
            "rooms": {"type": "array", "items": {"enum": ["kitchen", "hall", "attic"]}, "minItems": 1, "maxItems": 3},
            "until": {"anyOf": [{"type": "string", "pattern": "^[0-9]{2}:[0-9]{2}$"}, {"type": "null"}]},
        },
        "required": ["degrees", "rooms", "until"],
    },
    "open_ticket": {
        "type": "object",
        "properties": {
            "title": {"type": "string", "minLength": 3, "maxLength": 40},
            "severity": {"type": "integer", "enum": [1, 2, 3]},
            "contact": {
                "type": "object",
                "properties": {"name": SHORT, "phone": {"type": "string", "pattern": "^[0-9]{3}-[0-9]{4}$"}},
                "required": ["name", "phone"],
            },
            "tags": {"type": "object", "properties": {"vip": {"type": "boolean"}, "retry": {"type": "boolean"}}},
        },
        "required": ["title", "severity", "contact"],
    },
    "hang_up": {"type": "object", "properties": {}, "additionalProperties": False},
}
TOOLS = tuple((name, json.dumps(schema)) for name, schema in SCHEMAS.items())


@dataclass
class Timed:
    """A grammar, and the seconds that its reply has waited for it."""

    grammar: Grammar
    seconds: float = 0.0

    def mask(self, tree: DraftTree) -> Tensor:
        return self._time(self.grammar.mask, tree)

    def narrow(self, tree: DraftTree, budget: int, room: int) -> DraftTree:
        return self._time(self.grammar.narrow, tree, budget, room)

    def consume(self, tokens: Sequence[int]) -> None:
        self._time(self.grammar.consume, tokens)

    def _time(self, work: Any, *arguments: Any) -> Any:
        began = time.perf_counter()
        found = work(*arguments)
        self.seconds += time.perf_counter() - began
        return found


@dataclass
class Row:
    """One drafter. seconds: of all steps; masked: of these, in the grammar."""

    drafter: str
    calls: int = 0
    valid: int = 0
    cut: int = 0
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    masked: float = 0.0
    tools: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    said: list[tuple[int, ...]] = field(default_factory=list)


def prompt(chat: Chat, number: int) -> list[int]:
    """A business's instructions, these tools, and what some caller says."""
    messages = dialogue(FIRST_SEED + number, Split()).messages
    functions = [
        {"type": "function", "function": {"name": name, "description": "", "parameters": schema}}
        for name, schema in SCHEMAS.items()
    ]
    head = chat.begin(messages[:1], functions)
    said = next(message["content"] for message in messages if message["role"] == "user")
    return [*head.ids, *chat.user(said, first=head.first_user), *chat.prompt]


def check(row: Row, reader: ReplyReader, finish: Finish) -> None:
    """Count one reply: it is one valid call, or was cut off by its length."""
    read = reader.take(final=True)
    row.calls += 1
    if finish is Finish.LENGTH and not read.calls:
        row.cut += 1
        return
    try:
        (call,) = read.calls
        if read.text or read.malformed or finish is not Finish.STOP_TOKEN:
            raise ValueError(f"more than a call, ended by {finish.value}")
        arguments = json.loads(call.arguments, parse_constant=_no_number)
        Draft202012Validator(SCHEMAS[call.name]).validate(arguments)
    except Exception as error:
        row.faults.append(f"{type(error).__name__}: {error} in {read}"[:300])
        return
    row.valid += 1
    row.tools[call.name] += 1


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def run(row: Row, engine: Engine, library: GrammarLibrary, chat: Chat, calls: int, temperature: float) -> None:
    """``calls`` calls, each to another caller."""
    form = chat.call_form
    assert form is not None
    constraint = ToolConstraint(form, TOOLS, "required", several=False)
    for number in range(calls):
        session = harness.warm(engine, prompt(chat, number), seed=number)
        grammar, reader = Timed(library.grammar(constraint)), ReplyReader(chat.codec, calls=form)
        turn = engine.submit(
            session,
            Sampling(temperature),
            max_tokens=MAX_TOKENS,
            stop_tokens=chat.codec.stop_tokens,
            watcher=reader,
            grammar=grammar,
        )
        began = time.perf_counter()
        while turn.finish is None:
            engine.step([Work(session)])
        row.seconds += time.perf_counter() - began
        row.masked += grammar.seconds
        row.tokens += turn.num_tokens
        row.steps += turn.stats.steps
        row.said.append(tuple(turn.tokens))
        check(row, reader, turn.finish)
        engine.close(session)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/receptionist"))
    parser.add_argument("--calls", type=int, default=2000, help="without a drafter and with the first one")
    parser.add_argument("--others", type=int, default=200, help="with every other drafter")
    parser.add_argument("--temperature", type=float, default=1.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = EngineConfig(str(given.model))
    target = load_target_for(config)
    chat = Chat(Codec.load(given.model, target.vocab_size))
    library = GrammarLibrary(chat.codec, target.vocab_size, target.device)
    head = f"eagle3:{given.model / 'eagle3'}"
    drafters = ["none", f"suffix+{head}", head, "suffix", "recycling"]
    drafters += [f"{kind}:{given.model / kind}" for kind in ("medusa", "mtp", "draft") if (given.model / kind).is_dir()]
    rows = []
    for place, drafter in enumerate(drafters):
        proposer = load_proposer(EngineConfig(str(given.model), drafter), target)
        engine = measured_engine(target, proposer, config)
        rows.append(row := Row(proposer.name))
        run(
            row,
            engine,
            library,
            chat,
            given.calls if place < 2 else given.others,
            given.temperature,
        )
        different = sum(mine != plain for mine, plain in zip(row.said, rows[0].said, strict=False))
        row.faults += [f"{different} replies are others than without a drafter"] if different else []
        print(f"{row.drafter}: {row.valid} of {row.calls} valid, {row.cut} cut off", flush=True)
    return report(rows, given.temperature)


def report(rows: list[Row], temperature: float) -> int:
    header = ["drafter", "calls", "valid", "cut off by length", "tokens per step", "ms per step", "grammar ms per step"]
    header += ["grammar's share", "faults"]
    table = [
        [
            row.drafter,
            row.calls,
            row.valid,
            row.cut,
            row.tokens / row.steps,
            1e3 * row.seconds / row.steps,
            1e3 * row.masked / row.steps,
            f"{row.masked / row.seconds:.1%}",
            len(row.faults),
        ]
        for row in rows
    ]
    print(harness.table(header, table))
    print(f"temperature {temperature:g}; calls by tool, without a drafter: {dict(rows[0].tools)}")
    for row in rows:
        print("".join(f"FAULT: {row.drafter}: {fault}\n" for fault in row.faults), end="")
    enough = all(row.valid + row.cut == row.calls and row.cut <= MAY_BE_CUT * row.calls for row in rows)
    cheap = all(row.masked < MAY_COST * row.seconds for row in rows)
    return 0 if enough and cheap and not any(row.faults for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
